"""A page as a reader of it takes it in: tags and text."""

import re
from html.parser import HTMLParser

VOID = {"meta", "link", "br", "hr", "img", "input"}


class Reader(HTMLParser):
    """Fails on what is not balanced; keeps tags with attributes, and the text."""

    def __init__(self, text: str) -> None:
        super().__init__(convert_charrefs=True)
        self.open: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text: list[str] = []
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text.append(data)

    def all(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.tags if name == tag]

    def words(self) -> str:
        return re.sub(r"\s+", " ", " ".join(self.text))

    def refuse_anything_loaded(self) -> None:
        """Fail on scripts, and on what is not in the page itself."""
        loading = {"script", "link", "iframe", "object", "embed", "img", "video", "base", "form"}
        assert not loading & {tag for tag, _ in self.tags}
        for tag, attributes in self.tags:
            for name, value in attributes.items():
                assert not name.startswith("on"), (tag, name)
                if name in ("href", "xlink:href", "src", "action", "srcset"):
                    assert value is not None
                    assert value.startswith(("#", "data:image/png;base64,")), (tag, value[:50])
                if name == "style":
                    assert value is not None and "url(" not in value and "@import" not in value
