# `make run` shows a guest with a working NIC, `make test` checks everything. Neither asks for more than Debian and cargo.

TARGET := $(or $(CARGO_TARGET_DIR),target)

# Without a library, and small: relative relocations packed, no tables for unwinding.
STATIC := -C target-feature=+crt-static -C link-arg=-Wl,-z,pack-relative-relocs \
	-C link-arg=-Wl,--no-eh-frame-hdr -C link-arg=-Wl,-T,resources/no-unwind.ld

.PHONY: help run test soak fuzz mutants lab bench setup debian kernel build clean

help: ## this text
	@awk -F ':.*## ' '/^[a-z]+:.*## / { printf "make %-8s %s\n", $$1, $$2 }' Makefile

run: setup build ## boot a Linux guest and show its network at work; with a terminal, a shell in it
	@resources/demo

test: ## every test there is; the last line is the count
	@tests/run

soak: debian ## the same, with each guest on every transport and carrier of frames, and a Debian disk; takes longer
	@tests/run --soak

fuzz: ## hostile input for all that reads some, a minute each; CONTRIBUTING.md has more
	@tests/fuzz/run

mutants: ## changes of a package's code that no test sees, make mutants PACKAGE=net; needs cargo-mutants, takes half an hour
	@tests/mutants/run $(or $(PACKAGE),devices)

lab: ## a shell where KVM is real; make lab CMD='...' runs that there instead
	@if [ -n "$$CMD" ]; then tests/lab/lab -- bash -c "$$CMD"; else tests/lab/lab; fi

bench: setup build ## measure against QEMU and against the bare system calls
	@tests/bench/run

setup: ## fetch packages, kernels and the guest's image; says nothing when all are there
	@resources/setup

debian: ## a Debian root disk with systemd and sshd, target/resources/debian.raw; a minute or two
	@resources/debian

kernel: ## the slim guest kernel, built from Debian's source; some minutes, and tests go faster
	@resources/guest-kernel/build

build: ## the release programs, wirevm and the agent for guests, which need no library; their manual pages are in resources/man
	@cargo rustc --release --package vmm --bin wirevm -- $(STATIC)
	@cargo rustc --release --package wirevm-agent --bin wirevm-agent -- $(STATIC)

clean: ## remove all that was built and fetched
	@rm -rf "$(TARGET)"

lab: export CMD := $(value CMD)
