from ssl_core.recipes import run_command


def main():
    run_command("ssl_tiny")


if __name__ == "__main__":
    main()
