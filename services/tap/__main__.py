from services.tap.tap import main

if __name__ == "__main__":
    main()
