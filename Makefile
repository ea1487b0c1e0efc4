# One command each; every one installs what it needs on a fresh machine.
#
#   make demo    watch VMs being balanced over four hosts on this machine
#   make test    lint and all tests, those of the lab included; CI runs this
#   make lab     a Debian guest on an emulated KVM host: boot, network, disk, snapshot, restore
#   make lint    formatting and clippy, warnings denied
#   make protocol   every state of two migrations and any fault: minutes
#   make soak-migrate   SOAK_COUNT=1000 migrations with random faults, by SOAK_SEED
#   make endure-migrate   ENDURE_COUNT=50 moves between two hosts under one TCP connection (needs root)
#   make bench   the benchmarks, with medians and spread
#   make bench-placement DATA=…   the planner on public and made-up problems, one line of JSON a run; KINDS=roadef:
#                machine reassignment only, a table of the medians of ROADEF_SEEDS=5 runs of ROADEF_SECONDS=10,60;
#                KINDS=hbal: next to Debian's hbal (ganeti-htools)
#   make bench-migrate   live migration next to QEMU's, PAIRS=9 of each case (needs root)
#   make bench-downtime   what an idle guest misses in MOVES=100 moves, committed in each store (needs KVM)
#   make bench-vmm   boot time, overhead, disks and networks next to QEMU's, ROUNDS=5 of each (needs root)
#   make fuzz    hostile guests against the virtio devices, planner inputs of any content; FUZZ_MINUTES minutes each

CARGO ?= cargo
DEMO_ARGS ?=
LAB_ARGS ?=
# A package of its own, built by a build script for a machine without an operating system.
BARE_METAL := tests/guest/bare

PAIRS ?= 9
BENCH_ARGS ?=

.PHONY: endure-migrate soak-migrate demo test lab test-lab lint bench bench-downtime bench-migrate bench-placement bench-vmm fuzz protocol bootstrap-build bootstrap-lab bootstrap-test

demo: bootstrap-build
	$(CARGO) run --quiet --release -p ballast-cli -- demo $(DEMO_ARGS)

test: lint
	$(CARGO) nextest run --workspace --profile $(if $(CI),ci,default)
	$(CARGO) test --quiet --workspace --doc

# Not --release: the emulated processor is what takes the time, and `make test` has built this already.
lab: bootstrap-lab
	$(CARGO) run --quiet -p ballast-lab -- show $(LAB_ARGS)

test-lab: bootstrap-test
	$(CARGO) nextest run -p ballast-lab --no-capture

lint: bootstrap-test
	$(CARGO) fmt --all --check
	cd $(BARE_METAL) && $(CARGO) fmt --check
	cd $(BARE_METAL) && $(CARGO) clippy --locked --target-dir $(CURDIR)/target/bare-metal -- --deny warnings
	$(CARGO) clippy --workspace --all-targets -- --deny warnings

bench: bootstrap-build
	$(CARGO) bench --workspace

bench-migrate: bootstrap-lab
	$(CARGO) bench --quiet -p ballast-vmm --bench migrate -- --pairs $(PAIRS) $(BENCH_ARGS)

MOVES ?= 100

# etcd comes with what tests need.
bench-downtime: bootstrap-test
	$(CARGO) bench --quiet -p ballast-tests --bench downtime -- --moves $(MOVES)

ROUNDS ?= 5

bench-vmm: bootstrap-lab
	$(CARGO) bench --quiet -p ballast-vmm --bench start -- $(ROUNDS)
	$(CARGO) bench --quiet -p ballast-vmm --bench devices -- --rounds $(ROUNDS) $(BENCH_ARGS)

PROTOCOL_ARGS ?= 2 1

protocol: bootstrap-build
	$(CARGO) run --quiet --release -p ballast-protocol --example explore -- $(PROTOCOL_ARGS)

FUZZ_MINUTES ?= 10
# A counter of LLVM's for every branch of ballast-vmm (see vmm/src/devices/fuzz), nothing else is built anew.
FUZZ_FLAGS := --cfg fuzzing -Cpasses=sancov-module -Cllvm-args=-sanitizer-coverage-level=3 \
	-Cllvm-args=-sanitizer-coverage-inline-8bit-counters

fuzz: bootstrap-build
	fuzzer=$$($(CARGO) rustc --package ballast-vmm --lib --profile test --message-format json-render-diagnostics \
		-- $(FUZZ_FLAGS) | sed -n 's/.*"executable":"\([^"]*\)".*/\1/p' | tail -1) && \
	FUZZ_MINUTES=$(FUZZ_MINUTES) "$$fuzzer" --ignored --nocapture fuzz::campaign
	FUZZ_MINUTES=$(FUZZ_MINUTES) $(CARGO) test -p ballast-placement --test fuzz -- --ignored --exact --nocapture campaign

SOAK_COUNT ?= 1000
SOAK_SEED ?= 1

soak-migrate: bootstrap-test
	SOAK_COUNT=$(SOAK_COUNT) SOAK_SEED=$(SOAK_SEED) $(CARGO) test -p ballast-tests --test e2e -- \
		--ignored --exact --nocapture faults::soak_of_random_faults

ENDURE_COUNT ?= 50

endure-migrate: bootstrap-test
	ENDURE_COUNT=$(ENDURE_COUNT) $(CARGO) test -p ballast-vmm --test continuity -- \
		--ignored --exact --nocapture a_connection_lives_through_many_moves

KINDS ?=
ROADEF_SECONDS ?= 10
ROADEF_SEEDS ?= 5

bench-placement: export ROADEF_SECONDS := $(ROADEF_SECONDS)
bench-placement: export ROADEF_SEEDS := $(ROADEF_SEEDS)
bench-placement: bootstrap-build
	@test -n "$(DATA)" || { echo 'say DATA=a folder with btrplace/, vmr/ and roadef/' >&2; exit 2; }
	$(CARGO) build --quiet --release -p ballast-cli
	placement/benches/public.sh $${CARGO_TARGET_DIR:-target}/release/ballast $(DATA) $(KINDS)

bootstrap-build:
	@deploy/bootstrap.sh build

bootstrap-lab:
	@deploy/bootstrap.sh lab

bootstrap-test:
	@deploy/bootstrap.sh test
