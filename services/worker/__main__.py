from services.worker.actor import Worker
from shared.actor import run

if __name__ == "__main__":
    run(Worker)
