from services.keeper.actor import Keeper
from shared.actor import run

if __name__ == "__main__":
    run(Keeper)
