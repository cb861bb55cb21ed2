def test_x():
    import kvrail
