from services.paper.server import run

if __name__ == "__main__":
    run()
