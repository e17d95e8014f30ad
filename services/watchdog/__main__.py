from services.watchdog.watchdog import main

if __name__ == "__main__":
    main()
