"""pages: which address shows what, and who may open it."""

from fastapi import HTTPException, Request, Response
from nicegui import app, ui

from services.dashboard import board, control, overview, symbol, trades
from services.dashboard.desk import Desk
from services.report.words import as_csv


def register(desk: Desk) -> None:
    """Declare every page. `Guard` has looked at the token before."""

    @ui.page("/")
    def _overview() -> None:
        overview.build(desk)

    @ui.page("/board")
    def _board() -> None:
        board.build(desk)

    @ui.page("/symbol/{name}")
    def _symbol(name: str) -> None:
        watch = desk.watch
        if not any(name in known for known in (watch.quotes, watch.instruments, watch.positions)):
            raise HTTPException(404, f"{name:.40}: not traded here")
        symbol.build(desk, name)

    @ui.page("/trades")
    def _trades() -> None:
        trades.build(desk)

    @ui.page("/control")
    def _control(request: Request) -> None:
        control.build(desk, request.scope["rights"])

    @app.get(trades.CSV)
    def _csv() -> Response:
        name = {"content-disposition": "attachment; filename=trades.csv"}
        return Response(as_csv(desk.books.trades), media_type="text/csv", headers=name)
