"""What the catalogue shows of a model."""

from tacit.tasks.models import flowing


def test_prose_flows_while_equations_and_headings_keep_their_lines():
    text = "A model.\n\nOne line\nand another.\n\n    x = 1\n\nReferences\n----------\n- A paper\n  of two lines\n- B"
    shown = "A model.\n\nOne line and another.\n\n    x = 1\n\nReferences\n----------\n- A paper of two lines\n- B"
    assert flowing(text) == shown
    assert flowing(shown) == shown
