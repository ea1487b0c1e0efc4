# One command each; every one installs what it needs on a fresh machine.
#
#   make demo    watch VMs being balanced over four hosts on this machine
#   make test    everything CI runs
#   make lint    formatting and clippy, warnings denied
#   make bench   the benchmarks, with medians and spread

CARGO ?= cargo
DEMO_ARGS ?=
# Built by rustc from a build script, so cargo fmt and cargo clippy do not know it.
BARE_METAL := $(wildcard tests/guest/bare/*.rs)

.PHONY: demo test lint bench bootstrap-build bootstrap-test

demo: bootstrap-build
	$(CARGO) run --quiet --release -p ballast-cli -- demo $(DEMO_ARGS)

test: lint
	$(CARGO) nextest run --workspace --profile $(if $(CI),ci,default)
	$(CARGO) test --quiet --workspace --doc

lint: bootstrap-test
	@mkdir -p target
	$(CARGO) fmt --all --check
	rustfmt --check $(BARE_METAL)
	clippy-driver --edition 2024 --crate-type bin -Cpanic=abort --emit=metadata -o target/bare-metal.rmeta \
		-Dwarnings tests/guest/bare/main.rs
	$(CARGO) clippy --workspace --all-targets -- --deny warnings

bench: bootstrap-build
	$(CARGO) bench --workspace

bootstrap-build:
	@deploy/bootstrap.sh build

bootstrap-test:
	@deploy/bootstrap.sh test
