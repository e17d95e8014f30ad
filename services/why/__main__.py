from services.why.why import main

if __name__ == "__main__":
    main()
