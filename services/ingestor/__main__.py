from services.ingestor.actor import Ingestor
from shared.actor import run

if __name__ == "__main__":
    run(Ingestor)
