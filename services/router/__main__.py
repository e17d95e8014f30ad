from services.router.actor import Router
from shared.actor import run

if __name__ == "__main__":
    run(Router)
