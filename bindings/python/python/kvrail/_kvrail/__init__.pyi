from kvrail._kvrail import native as native
