from __future__ import annotations

from reading import Reader

HEADER = "image_name| comment_number| comment\n"


def test_the_original_file(reader: Reader) -> None:
    text = (
        HEADER + "1000092795.jpg| 0| Two young guys with shaggy hair look at their hands .\n"
        "1000092795.jpg| 1| A sign | with a bar, and a comma .\n"
        "2199200615.jpg| 3| A dog runs .\r\n"
        "2199200615.jpg| 4   A dog runs across the grass .\n"
        "2199200615.jpg| 3| A dog runs .\n"
        "2199200615.jpg| 5|\n"
    )
    for content in (text, "\ufeff" + text):
        assert reader.captions("results.csv", content) == {
            "1000092795.jpg": [
                "Two young guys with shaggy hair look at their hands .",
                "A sign | with a bar, and a comma .",
            ],
            "2199200615.jpg": ["A dog runs .", "A dog runs across the grass ."],
        }
        assert reader.set.format == "flickr30k"
        assert reader.notes == [
            "rows with a missing delimiter repaired: 1 (line 5)",
            "duplicate rows dropped: 1 (2199200615.jpg)",
            "blank captions dropped: 1 (2199200615.jpg)",
        ]


def test_mistakes(reader: Reader) -> None:
    assert reader.captions("results.csv", HEADER + "a.jpg no bars\nb.jpg| 0| x\n") == {"b.jpg": ["x"]}
    assert list(reader.set.notes.unusable) == [(2, "not `name| number| caption`", None)]
    assert reader.error("results.csv", "a.jpg| 0| x\n", format="flickr30k").startswith(
        "results.csv: its first line is not"
    )
    assert reader.error("results.csv", HEADER).startswith("results.csv: names no image")
