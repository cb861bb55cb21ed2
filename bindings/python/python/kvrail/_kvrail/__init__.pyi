from kvrail._kvrail import native as native
from kvrail._kvrail import nixl as nixl
