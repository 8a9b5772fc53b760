"""Which actor takes which unit: nothing depends on it but what travels between nodes."""

from collections import Counter

from rayfl.runtime.queue import ActorFuture, UnitQueue


def unit(name, node=None, method="train"):
    return ActorFuture(call=(method, (), 0), label=name, node=node)


def queue(*futures):
    made = UnitQueue()
    made.append(futures)
    return made


TWO, THREE = Counter(a=1, b=1), Counter(a=1, b=2, c=1)


def taken(queue, node, actors, helps=True):
    future = queue.take(node, helps, actors)
    return future and future.label


def test_on_one_node_first_in_first_out():
    waiting = queue(unit("1", "a"), unit("2", "gone"), unit("e", method="evaluate"))
    waiting.put_first(unit("0", "a", "add"))
    assert [taken(waiting, "a", Counter(a=2)) for _ in range(5)] == ["0", "1", "2", "e", None]
    assert not waiting


def test_each_node_takes_its_own_share_first():
    waiting = queue(*(unit(f"{node}{i}", node) for node in "ab" for i in range(2)))
    assert [taken(waiting, node, TWO) for node in "baab"] == ["b0", "a0", "a1", "b1"]


def test_then_the_last_of_who_has_most_left_for_an_actor():
    waiting = queue(
        *(unit(f"b{i}", "b") for i in range(3)), *(unit(f"c{i}", "c") for i in range(2))
    )
    assert taken(waiting, "a", THREE, helps=False) is None
    assert [taken(waiting, "a", THREE) for _ in range(5)] == ["c1", "b2", "b1", "c0", "b0"]


def test_sums_stay_on_their_node_as_long_as_it_is_there():
    waiting = queue(unit("sum", "b", "add"))
    assert taken(waiting, "a", TWO) is None
    assert taken(waiting, "a", Counter(a=1, c=1)) == "sum"


def test_evaluations_wait_for_training_that_came_before_them_and_not_for_what_came_after():
    waiting = queue(unit("b0", "b"), unit("e0", method="evaluate"), unit("b1", "b"))
    assert taken(waiting, "a", TWO, helps=False) is None
    assert [taken(waiting, "a", TWO) for _ in range(3)] == ["b0", "e0", "b1"]
