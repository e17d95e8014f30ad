from services.dashboard.dashboard import main

if __name__ == "__main__":
    main()
