from typing import Any

from nearzip.report import Section, View

_LIST = """<ul>{% for tag, numbers in tags.items() %}
<li>{{ tag|shown }}: {{ numbers|join(", ") }}</li>{% endfor %}
</ul>"""


class Tags(Section):
    """The versions of each tag."""

    name = "example-tags"
    title = "Tags"

    def applies(self, view: View) -> bool:
        return any(row.tags for row in view.facts.live)

    def data(self, view: View) -> dict[str, Any]:
        found: dict[str, list[int]] = {}
        for row in view.facts.live:
            for tag in row.tags:
                found.setdefault(tag, []).append(row.number)
        return found

    def html(self, view: View) -> str:
        return view.render(_LIST, tags=self.data(view))
