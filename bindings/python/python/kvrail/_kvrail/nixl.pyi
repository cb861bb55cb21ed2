from kvrail.nixl._bindings import *
