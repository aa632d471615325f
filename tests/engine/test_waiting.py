"""Orders wait in line, shape by shape."""

from refadgen.engine.waiting import WaitingOrders


def test_each_shape_has_a_line_of_its_own() -> None:
    waiting: WaitingOrders[str] = WaitingOrders()
    for order in ("a1", "b1", "a2", "a3"):
        waiting.add(order[0], order)
    assert waiting.shapes == ["a", "b"]
    assert waiting.take("a", 2) == ["a1", "a2"]
    assert (waiting.take("b", 5), len(waiting)) == (["b1"], 1)
    assert (waiting.take("b", 1), waiting.take("c", 1), waiting.take("a", -1)) == ([], [], [])
    assert waiting.shapes == ["a"]


def test_orders_that_are_put_back_come_first_in_their_order() -> None:
    waiting: WaitingOrders[str] = WaitingOrders()
    waiting.add("a", "late")
    waiting.put_back("a", ["1", "2"])
    assert waiting.take("a", 9) == ["1", "2", "late"]
    assert not waiting


def test_an_order_leaves_once() -> None:
    waiting: WaitingOrders[str] = WaitingOrders()
    for order in ("1", "2", "3"):
        waiting.add("a", order)
    waiting.discard("a", "2")
    waiting.discard("a", "2")
    waiting.discard("b", "1")
    assert len(waiting) == 2
    assert waiting.take("a", 9) == ["1", "3"]
    assert waiting.shapes == []
