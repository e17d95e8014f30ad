from services.ops.ops import main

if __name__ == "__main__":
    main()
