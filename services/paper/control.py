"""control: faults, plans and the exchange's own truth, on a unix socket that is not the v5 port.

GET /          breaches of the auditor and what is going on     POST /fault   one fault
GET /account   orders, executions, positions, wallet            POST /plan    faults to come
DELETE /fault  heal everything
"""

from typing import Any

import orjson
from aiohttp import web

from services.paper.actor import Paper
from services.paper.faults import BadFault, random_plan


class Control:
    """The application of the control socket."""

    def __init__(self, paper: Paper) -> None:
        self._paper = paper

    def application(self) -> web.Application:
        """Its routes."""
        app = web.Application(middlewares=[_explain])
        app.router.add_get("/", self._status)
        app.router.add_get("/account", self._account)
        app.router.add_post("/fault", self._fault)
        app.router.add_delete("/fault", self._heal)
        app.router.add_post("/plan", self._plan)
        return app

    async def _status(self, _: web.Request) -> web.Response:
        return _json(self._paper.venue.status())

    async def _account(self, _: web.Request) -> web.Response:
        return _json(self._paper.venue.account())

    async def _fault(self, request: web.Request) -> web.Response:
        done = self._paper.venue.control(await _body(request), self._paper.now())
        self._paper.deliver()
        return _json(done)

    async def _heal(self, _: web.Request) -> web.Response:
        self._paper.venue.heal(self._paper.now())
        return _json({"healed": True})

    async def _plan(self, request: web.Request) -> web.Response:
        """`{"plan": [[seconds, fault], ...]}` or `{"seed": 1, "seconds": 600, "every_s": 60}`."""
        body = await _body(request)
        plan = body.get("plan") if isinstance(body, dict) else None
        if plan is None:
            plan = self._random(body)
        venue = self._paper.venue
        return _json({"planned": venue.faults.plan(plan, self._paper.now().mono_s), "plan": plan})

    def _random(self, body: Any) -> list[Any]:
        try:
            seed, seconds = int(body["seed"]), float(body["seconds"])
            every_s = float(body.get("every_s", 60))
        except (KeyError, TypeError, ValueError) as error:
            raise BadFault(f"plan: expected plan, or seed and seconds: {error!r}") from error
        if every_s < 0.1:
            raise BadFault("every_s: at least 0.1")
        return random_plan(seed, seconds, every_s, self._paper.venue.public.symbols)


@web.middleware
async def _explain(request: web.Request, handler: Any) -> web.StreamResponse:
    """What was wrong with a fault goes back to who asked for it."""
    try:
        answer: web.StreamResponse = await handler(request)
    except BadFault as error:
        return _json({"error": str(error)}, 400)
    return answer


async def _body(request: web.Request) -> Any:
    try:
        return orjson.loads(await request.read())
    except orjson.JSONDecodeError as error:
        raise BadFault(f"not JSON: {error}") from error


def _json(body: Any, status: int = 200) -> web.Response:
    return web.Response(body=orjson.dumps(body), content_type="application/json", status=status)
