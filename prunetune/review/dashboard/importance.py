"""One importance for the dashboard and the report: that of decoded parameters.

Optuna dashboard computes its own, of the raw numbers in [0, 1] that a study suggests: names that
nobody reads, and other figures than the report's. What it asks its server for is answered here.
"""

import json
import logging
import re
import threading
from collections.abc import Callable, Iterable
from typing import Any

import optuna
from optuna.storages import BaseStorage

from prunetune.review.decoded import importances
from prunetune.review.facts import study_facts

logger = logging.getLogger(__name__)

App = Callable[[dict[str, Any], Callable[..., Any]], Iterable[bytes]]
_PATH = re.compile(r"/api/studies/(\d+)/param_importances")


class OneImportance:
    """A WSGI application that answers what the report says where importances are asked for.

    Args:
        app: Optuna dashboard's; it answers everything else, and for studies of others.
        storage: The study database.
    """

    def __init__(self, app: App, storage: BaseStorage) -> None:
        self._app, self._storage = app, storage
        self._known: dict[int, tuple[int, bytes]] = {}
        self._lock = threading.Lock()

    def __call__(self, environ: dict[str, Any], start: Callable[..., Any]) -> Iterable[bytes]:
        """Answer a request."""
        asked = _PATH.fullmatch(str(environ.get("PATH_INFO", "")))
        body = None
        if asked is not None:
            try:
                body = self._body(int(asked[1]))
            except Exception as error:
                logger.warning("importances are Optuna's: %s", error)
        if body is None:
            return self._app(environ, start)
        start("200 OK", [("Content-Type", "application/json"), ("Content-Length", str(len(body)))])
        return [body]

    def _body(self, study_id: int) -> bytes | None:
        """Return the answer for a study; None for one that is not prunetune's."""
        if "spec" not in self._storage.get_study_user_attrs(study_id):
            return None
        with self._lock:
            name = self._storage.get_study_name_from_id(study_id)
            facts = study_facts(optuna.load_study(study_name=name, storage=self._storage))
            known = self._known.get(study_id)
            if known is None or known[0] != facts.finished:
                rows = [
                    {"name": name, "importance": share, "distribution": "FloatDistribution"}
                    for name, share in importances(facts).items()
                ]
                # Where there are two objectives one importance is about both.
                body = json.dumps({"param_importances": [rows] * len(facts.metrics)}).encode()
                known = self._known[study_id] = facts.finished, body
            return known[1]
