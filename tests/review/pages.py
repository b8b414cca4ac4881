"""Pages of reports, as a browser reads them."""

import json
from collections import Counter
from html.parser import HTMLParser

from made_studies import NASTY, NASTY_FILE, made_study

from prunetune.review.facts import study_facts
from prunetune.review.report.report import Pictures, render
from prunetune.review.report.worst import Panel, Worst, worst_samples


class Page(HTMLParser):
    """What a browser makes of a page: elements, ids, attributes, text outside scripts."""

    def __init__(self, text):
        super().__init__()
        self.elements, self.ids, self.links, self.figures = Counter(), [], [], {}
        self.text, self._inside, self.handlers = [], "", []
        self.feed(text)
        self.close()

    def handle_starttag(self, tag, attrs):
        self.elements[tag] += 1
        given = dict(attrs)
        self.ids += [given["id"]] if "id" in given else []
        self.links += [given[k] for k in ("src", "href") if given.get(k)]
        self.handlers += [name for name in given if name.startswith("on")]
        self._inside = given.get("data-figure", tag) if tag in ("script", "style") else ""

    def handle_endtag(self, tag):
        self._inside = ""

    def handle_data(self, data):
        if self._inside.startswith("plot-"):
            self.figures[self._inside] = json.loads(data)
        elif not self._inside:
            self.text.append(data)

    @property
    def words(self):
        return " ".join(" ".join(self.text).split())


def page_of(study, pictures=None, shown="here"):
    facts = study_facts(study)
    return Page(render(facts, shown, pictures or Pictures(worst_samples(facts), "none asked for.")))


def nasty_pictures():
    panel = Panel(NASTY, "data:image/webp;base64,AAAA", 8, 8)
    sample = Worst(
        0, "held-out", (("gap", NASTY),), NASTY_FILE, NASTY, NASTY, NASTY, NASTY, NASTY, (panel,),
        NASTY,
    )  # fmt: skip
    return Pictures([sample], NASTY)


def nasty_page(searched):
    study = made_study(trials=25, failed=1, name=f"study {NASTY} {NASTY_FILE}")
    study.set_user_attr("record", searched.study.user_attrs["record"])
    return render(study_facts(study), f"/tmp/{NASTY_FILE}", nasty_pictures())
