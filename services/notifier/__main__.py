from services.notifier.notifier import main

if __name__ == "__main__":
    main()
