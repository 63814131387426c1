# coco: confidential containers. `make` prints this help.
SHELL       := /bin/bash
PREFIX      ?= /usr/local
DESTDIR     ?=
GO          ?= $(shell command -v go 2>/dev/null || echo /usr/local/go/bin/go)
# Asked once: all that one run of make builds, installs and tests has one version. "dev" is that of a tree without git.
ifndef VERSION
VERSION     := $(shell git describe --tags --always --dirty 2>/dev/null || echo dev)
endif
LDFLAGS     := -s -w -X github.com/coco-shim/coco/internal/version.Version=$(VERSION)
# Libraries are compiled without inlining: none of them is where bytes pass through, and shim and agent, which every pod
# pays for, become 0.4 MB smaller each. Later patterns win: the runtime, system calls and our own code are inlined as usual.
GCFLAGS     := -gcflags=all=-l -gcflags=runtime/...= -gcflags=internal/...= -gcflags=sync/...= -gcflags=syscall= -gcflags=github.com/coco-shim/coco/...=
BUILD       := -trimpath -buildvcs=false -tags no_grpc $(GCFLAGS)
export CGO_ENABLED := 0
export GOTOOLCHAIN := local
BINARIES    := containerd-shim-coco-v2 coco-agent coco-trust coco-rego coco coco-oci
GUEST       := dist/guest
STAGE       := $(CURDIR)/dist/prefix
TOOLS       := $(CURDIR)/dist/tools
RUNC_SUITE  ?= TestContainer|TestTask|TestExec|TestDaemon

.PHONY: help
help: ## print this help
	@grep -hE '^[a-z0-9-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 18

## --- needs nothing but Go ---

.PHONY: build
build: $(addprefix bin/,$(BINARIES)) ## static binaries in bin/

.PHONY: FORCE
bin/%: FORCE
	@mkdir -p bin
	$(GO) build $(BUILD) -ldflags '$(LDFLAGS)' -o $@ ./cmd/$*

# The flags of the binaries, for the test of their sizes.
.PHONY: print-build-flags
print-build-flags:
	@echo $(BUILD)

.PHONY: print-version
print-version:
	@echo $(VERSION)

.PHONY: unit
unit: ## unit tests; those that need root, QEMU or an image skip with the reason
	$(GO) test ./...

.PHONY: lint
lint: tools $(TOOLS)/golangci-lint ## gofumpt, vet, staticcheck, .golangci.yml, and a search for functions that no program reaches
	@out=$$($(TOOLS)/gofumpt -l $$(git ls-files '*.go' | grep -v '\.pb\.go$$')); test -z "$$out" || { echo "not gofumpt'ed:"; echo "$$out"; exit 1; }
	$(GO) vet ./...
	$(TOOLS)/staticcheck ./...
	$(TOOLS)/golangci-lint run ./...
	TOOLS=$(TOOLS) tools/unreachable.sh

.PHONY: tools
tools: ## the pinned tools of tools/go.mod, built into dist/tools
	@mkdir -p $(TOOLS)
	cd tools && GOBIN=$(TOOLS) $(GO) install -trimpath tool

# In a module of its own: it would raise the versions of what generates code.
$(TOOLS)/golangci-lint: tools/lint/go.mod
	@mkdir -p $(TOOLS)
	cd tools/lint && GOBIN=$(TOOLS) $(GO) install -trimpath tool

.PHONY: helm
helm: $(TOOLS)/helm ## the pinned helm of tools/helm, without which the tests of the chart skip

# In a module of its own, for the same reason.
$(TOOLS)/helm: tools/helm/go.mod
	@mkdir -p $(TOOLS)
	cd tools/helm && CGO_ENABLED=0 GOBIN=$(TOOLS) $(GO) install -trimpath tool

.PHONY: generate
generate: tools ## regenerate the agent protocol from its .proto files, Cloud Hypervisor's types from OpenAPI
	for d in agent containerd shimoptions; do (cd api/$$d && PATH=$(TOOLS):$$PATH buf generate) || exit 1; done
	cd hypervisor/clh/clhapi && $(TOOLS)/oapi-codegen -config oapi-codegen.yaml openapi.yaml

.PHONY: check-generate
check-generate: generate ## fail when the committed generated code is stale
	git diff --exit-code -- api hypervisor/clh/clhapi

.PHONY: fuzz-short
fuzz-short: ## every fuzz target for FUZZTIME (default 10s) each
	tests/fuzz.sh $${FUZZTIME:-10s}

FUZZ_POLICY := '^agent/trust FuzzJudge' '^internal/initdata FuzzFromDisk' '^policy FuzzLoad' '^policy/engine FuzzCheck' \
  '^agent/gate FuzzMessage' '^plan/request FuzzConvert' '^agent/ocispec FuzzSpec'

.PHONY: fuzz-policy
fuzz-policy: ## what a hostile host hands to the guest's policy, FUZZTIME (default 10m) each; writes docs/conformance/policy-fuzz.md
	COCO_FUZZ_COMMIT=1 COCO_FUZZ_RECORD=docs/conformance/policy-fuzz.md GOMAXPROCS=1 nice -n 19 tests/fuzz.sh $${FUZZTIME:-10m} $(FUZZ_POLICY)

.PHONY: mutate
mutate: ## drops each comparison of the policy's evaluator in turn; a test has to notice (minutes); writes docs/conformance/policy-mutations.md
	$(GO) run ./tests/mutate -reasons tests/mutate/reasons.txt -report docs/conformance/policy-mutations.md

.PHONY: race-names
race-names: ## names are swapped for 60 s while the agent serves requests; as root
	COCO_RACE_SECONDS=60 $(GO) test -count=1 -v -timeout 5m -run TestNamesAreSwapped ./agent

.PHONY: race-paths
race-paths: ## directories and links swapped for RACETIME (default 60s) while files of the host are copied and volumes made; root
	COCO_RACE=$${RACETIME:-60s} $(GO) test -count=1 -v -run 'TestRaceWithSwaps' ./virtcontainers/copytree
	COCO_RACE=$${RACETIME:-60s} COCO_GUEST_DIR=$(CURDIR)/$(GUEST) COCO_REQUIRE=all $(GO) test -count=1 -v -run 'TestSwappedDirectories' ./tests/volumes

## --- needs a Debian host and its package archive ---

# The newest packages: the archive drops older ones, so that a lock of last month cannot be built from a fresh cache. A
# release is built with IMAGE_FLAGS=--locked.
IMAGE_FLAGS ?=
.PHONY: image
image: build ## guest image (kernel, initramfs, manifest) in dist/guest, if builder or agent changed
	@mkdir -p dist
	@{ sha256sum bin/coco bin/coco-agent bin/coco-trust bin/coco-rego; echo '$(IMAGE_FLAGS)'; } >dist/guest.inputs.new
	@if cmp -s dist/guest.inputs.new dist/guest.inputs && bin/coco guest inspect $(GUEST) >/dev/null 2>&1; then \
		echo "dist/guest is up to date"; rm dist/guest.inputs.new; \
	else \
		bin/coco guest build $(IMAGE_FLAGS) --agent bin/coco-agent --out $(GUEST) && mv dist/guest.inputs.new dist/guest.inputs; \
	fi

# FIRMWARE_SNP and FIRMWARE_TDX are builds of OVMF for which launch digests are published, RELEASE_KEY is a private key of
# ssh-keygen. All times in the files are that of the commit.
.PHONY: release
release: stage ## archive, SBOM, reference values and checksums in dist/release; signed with RELEASE_KEY=FILE
	$(GO) run ./internal/release -version '$(VERSION)' -epoch "$$(git log -1 --format=%ct)" \
		-firmware-snp '$(FIRMWARE_SNP)' -firmware-tdx '$(FIRMWARE_TDX)' -key '$(RELEASE_KEY)'

.PHONY: image-lock
image-lock: build ## newest packages for releases: guest/packages.lock.json, which coco guest build --locked obeys
	bin/coco guest build --agent bin/coco-agent --out $(GUEST) --lock guest/packages.lock.json --renew-lock

.PHONY: install
install: build ## shim, CLI, guest image and configuration under DESTDIR/PREFIX
	@test -s $(GUEST)/manifest.json || $(MAKE) image
	install -d $(DESTDIR)$(PREFIX)/bin $(DESTDIR)$(PREFIX)/share/coco/guest $(DESTDIR)$(PREFIX)/share/coco/configs
	install -m 0755 bin/containerd-shim-coco-v2 bin/coco bin/coco-oci $(DESTDIR)$(PREFIX)/bin/
	install -m 0644 $(GUEST)/vmlinux $(GUEST)/vmlinuz $(GUEST)/initrd.img $(GUEST)/part-*.img $(GUEST)/manifest.json $(DESTDIR)$(PREFIX)/share/coco/guest/
	install -m 0644 configs/*.toml $(DESTDIR)$(PREFIX)/share/coco/configs/

.PHONY: stage
stage: build image ## like install, into dist/prefix, for the tests and the demo
	$(MAKE) --no-print-directory install PREFIX=$(STAGE) DESTDIR= VERSION=$(VERSION)

## --- needs root on Debian 12 ---

.PHONY: setup
setup: ## packages and other versions of containerd, QEMU and Docker that the tests need
	tests/setup.sh packages containerd-1.7 containerd-2.1 containerd-2.4 qemu-10.0 qemu-11.1 virtiofsd-1.13 docker podman python
	cd tests/azkeys && $(GO) mod download

.PHONY: demo
demo: ## set up everything, boot a microVM and run a container in it
	tests/demo.sh

.PHONY: demo-secret
demo-secret: ## a broker, and pods on platform vtpm that get their secrets or are refused, with the reasons
	tests/demo-test.sh TestAPodProvesWhatItIsAndGetsItsSecrets

.PHONY: demo-attest
demo-attest: ## an unprivileged container on platform vtpm shows its claims: evidence, verified, and the broker's token
	tests/demo-test.sh TestAnUnprivilegedContainerShowsItsClaims

.PHONY: demo-azure
demo-azure: ## containers of a pod get keys of Azure's vault from their guest, or are refused; the services are fakes
	tests/demo-test.sh TestAzureEndpoints ./tests/agent

# Test programs run one at a time, under a lock: they boot VMs and look for what others leave behind. Meanwhile the second
# processor compiles what comes next, checks the code, and compiles Kubernetes, which only the last package needs.
#
# A failed test runs once more, alone, when the others have ended. If it passes then, the run is green and its last lines say
# FLAKED with the first failure; dist/flakes.json has the same. More than ten failures are no flakes.
gotest = COCO_GUEST_DIR=$(CURDIR)/$(GUEST) COCO_VERSION=$(VERSION) COCO_REQUIRE=all $(TOOLS)/gotestsum --format standard-quiet --rerun-fails=1 \
	--rerun-fails-max-failures=10 --rerun-fails-run-root-test --jsonfile dist/$(1).json --packages "$(2)" -- \
	-count=1 -p 2 -exec 'flock -o $(CURDIR)/dist/test.lock' -timeout 35m $(3)

$(TOOLS)/gotestsum: tools/go.mod
	cd tools && GOBIN=$(TOOLS) $(GO) install -trimpath gotest.tools/gotestsum

.PHONY: test
test: setup stage $(TOOLS)/gotestsum ## lint and all tests: unit, real VMs, real containerd, Docker, kubelet and a Kubernetes cluster
	@rm -f dist/tests.json dist/tests-k8s.json dist/flakes.json; \
	nice -n 10 tests/setup.sh k8s & k8s=$$!; nice -n 10 $(MAKE) --no-print-directory lint & lint=$$!; failed=; \
	$(call gotest,tests,$$($(GO) list ./... | grep -v /tests/k8s$$ | tr '\n' ' ')) || failed=1; \
	wait $$lint || failed=1; \
	wait $$k8s && $(call gotest,tests-k8s,./tests/k8s) || failed=1; \
	dist/prefix/bin/coco template rm --all || failed=1; \
	$(GO) run ./tests/flakes -out dist/flakes.json dist/tests.json dist/tests-k8s.json || failed=1; \
	test -z "$$failed"

# What boots here and starts from templates in `make test`: each way of starting a pod, several containers in a VM, disks
# and volumes, memory, and kills. The rest of a suite is about what happens long after the start.
BOOT_SUITES := ./tests/integration ./tests/cri ./tests/volumes ./tests/sandbox ./tests/docker ./tests/podman ./tests/k8s
BOOT_TESTS  ?= KillAtEachMoment|KillOfShim|TwoCreates|EveryContainerd|RunLooksTheSame|ThirtyContainers|WantsMoreThanItsMemory|ContainersShareAPod|InitContainers|ExecProbes|PodOfTwoContainers|VMThatDies|VolumesThatKeepData|EmptyDirsAreThePods|DaemonRestarts|DockerRuns|PodmanRuns|KilledProcesses|ContainersEndAs|PodDeletedWhile|StaticPodUnderEach

.PHONY: test-boot
test-boot: setup stage $(TOOLS)/gotestsum ## the suites whose VMs start from templates in `make test`, once more with VMs that boot
	@export COCO_TEST_TEMPLATE=off; $(call gotest,tests-boot,$(BOOT_SUITES),-run '$(BOOT_TESTS)')

.PHONY: cri-suite
cri-suite: setup-bench stage ## all of containerd's CRI suite under runc and under coco (half an hour)
	COCO_REQUIRE=all $(GO) test -count=1 -v -timeout 90m -run TestContainerdsCRISuite ./tests/cri -args -cri.suite all \
	  -cri.report $(CURDIR)/docs/conformance/cri-suite.md

.PHONY: client-suite
client-suite: setup-bench stage ## all of containerd's client suite under runc and under coco (half an hour)
	COCO_REQUIRE=all $(GO) test -count=1 -v -timeout 110m -run TestContainerdsClientSuite ./tests/integration -args -suite.whole \
	  -suite.report $(CURDIR)/docs/conformance/client-suite.md

.PHONY: frontends
frontends: setup stage ## a hundred actions of Docker and of Podman beside runc, page in docs/frontends.md (an hour; COCO_FRONTENDS_FOR=8m: for that time, and on where it stopped)
	tests/setup.sh compose docker-28 containerd-2.4
	COCO_FRONTENDS=$(CURDIR)/docs/frontends COCO_REQUIRE=all $(GO) test -count=1 -p 1 -timeout 120m -run TestEveryAction ./tests/docker ./tests/podman ./tests/integration
	UPDATE_GOLDEN=1 $(GO) test -count=1 -run TestThePage ./tests/frontends

.PHONY: hostile
hostile: setup-bench stage ## ten minutes of a guest that lies, a host that does, and 200 execs at once: memory, log, others
	COCO_HOSTILE_TIME=10m COCO_GUEST_DIR=$(CURDIR)/$(GUEST) COCO_REQUIRE=all $(GO) test -count=1 -v -timeout 30m -run TestAHostileAgent ./tests/integration
	COCO_HALF_OPEN=10000 COCO_GUEST_DIR=$(CURDIR)/$(GUEST) COCO_REQUIRE=all $(GO) test -count=1 -v -timeout 10m -run TestAHostileHost ./tests/agent
	COCO_STORM=200 COCO_GUEST_DIR=$(CURDIR)/$(GUEST) COCO_REQUIRE=all $(GO) test -count=1 -v -timeout 10m -run TestManyExecs ./tests/sandbox

.PHONY: big-write
big-write: stage ## 1 GiB into a container's writable layer, and a search for it in the host's files; CI writes 288 MiB
	COCO_WRITE_MIB=1024 COCO_GUEST_DIR=$(CURDIR)/$(GUEST) COCO_REQUIRE=all $(GO) test -count=1 -v -timeout 20m -run TestNothingOfAContainer ./tests/volumes

.PHONY: standby
standby: stage ## VMs that wait for their pods: initdata, eight replicas at once, times beside boots
	tests/setup.sh packages containerd-2.4
	COCO_STANDBY=1 COCO_REQUIRE=all $(GO) test -count=1 -v -timeout 20m -run 'VMsThatWait|ThatWaits' ./tests/integration
	COCO_TEST_STANDBY=1 COCO_REQUIRE=all $(GO) test -count=1 -v -timeout 10m -run AKubernetesPodStartsInAVMThatWaits ./tests/cri

.PHONY: bench
bench: setup-bench stage ## figures beside their baselines, as a table and bench.json
	$(GO) run ./tests/bench -out dist/bench.json

.PHONY: bench-kbs
bench-kbs: ## the key broker under load for ten seconds of each kind: times, rates, memory
	COCO_KBS_LOAD=10s $(GO) test -count=1 -v -timeout 5m -run 'TestLoad$$' ./attestation/broker

.PHONY: kill-store
kill-store: ## the broker's store is killed 500 times while it writes: no acknowledged write is lost (a minute)
	COCO_KILL_ROUNDS=500 $(GO) test -count=1 -v -timeout 10m -run TestKilledWriters ./attestation/broker/store

.PHONY: kbs-page
kbs-page: ## the key broker's page in Chromium, with a picture of it in docs/kbs-page.png
	tests/setup.sh chromium
	COCO_BROWSER=/usr/bin/chromium-headless-shell COCO_BROWSER_PICTURE=$(CURDIR)/docs/kbs-page.png \
	  $(GO) test -count=1 -v -timeout 5m -run TestThePage ./cmd/coco/internal/kbs

.PHONY: interop
interop: ## crates of others read the broker's messages and tokens, and judge evidence; needs cargo and libssl-dev; writes docs/conformance/crates.md
	cd tests/interop && OPENSSL_NO_VENDOR=1 CARGO_TARGET_DIR=$(CURDIR)/dist/interop cargo build --locked
	COCO_CRATES=$(CURDIR)/dist/interop/debug/coco-interop COCO_CRATES_REPORT=$(CURDIR)/docs/conformance/crates.md \
	  $(GO) test -count=1 -v -timeout 5m -run TestCratesAgree ./attestation/broker

.PHONY: setup-bench
setup-bench:
	tests/setup.sh packages containerd-2.4

# K8S are flags of tests/k8s/cmd/coco-k8s, for example K8S='-handler coco' or K8S='-groups node -procs 3'.
.PHONY: k8s-up k8s-down k8s-test k8s-soak k8s-load
k8s-up: setup-k8s stage ## a single-node Kubernetes cluster with coco (first time: about 15 minutes of building)
	$(GO) run ./tests/k8s/cmd/coco-k8s up $(K8S)

k8s-down: ## stop that cluster
	$(GO) run ./tests/k8s/cmd/coco-k8s down $(K8S)

k8s-test: setup-k8s stage ## Kubernetes conformance under runc and coco, report in docs/conformance
	$(GO) run ./tests/k8s/cmd/coco-k8s test $(K8S)

k8s-soak: setup-k8s stage ## a hundred pods one after another: does anything grow or stay?
	$(GO) run ./tests/k8s/cmd/coco-k8s soak $(K8S)

k8s-load: setup-k8s stage ## half an hour of exec, logs and output: does shim, VMM or containerd grow?
	$(GO) run ./tests/k8s/cmd/coco-k8s load $(K8S)

POLICY_PODS = StaticPod|KubeletReportsIt|RestartsInALivingPod|SecurityContexts|OfAStaticPod|VMMKilled|MayRestart|WhileItStarts|FiveStarts|WithKubectl|EvictedAlone|WhyAPodCannotBe
.PHONY: policy-pods
policy-pods: setup-k8s stage ## pods of tests/k8s under the policies of their manifests (minutes); writes docs/conformance/policy-pods.md
	tests/setup.sh packages containerd-1.7 containerd-2.4 kubelet
	COCO_POLICY_PODS=$(CURDIR)/docs/conformance/policy-pods.md COCO_REQUIRE=all $(GO) test -count=1 -v -timeout 20m -run \
		'$(POLICY_PODS)' ./tests/k8s

.PHONY: rego-regopy
rego-regopy: ## random policies, coco-rego's evaluator beside regopy's (minutes; gets regopy from PyPI); writes docs/conformance/rego-regopy.md
	python3 -m venv dist/regopy
	dist/regopy/bin/pip install -q regopy==1.5.2
	COCO_REGOPY_REPORT=$(CURDIR)/docs/conformance/rego-regopy.md COCO_REGOPY_POLICIES=400 \
	  COCO_REGOPY=$(CURDIR)/dist/regopy/bin/python $(GO) test -count=1 -v -timeout 20m -run TestRegopyAgrees ./policy/katarego

.PHONY: k8s-beside
k8s-beside: stage ## one pod under runc and under coco, row by row what users met, page in docs/conformance
	tests/setup.sh packages containerd-2.4 kubelet
	COCO_REQUIRE=all $(GO) test -count=1 -v -timeout 20m -run TestWhatUsersMet ./tests/k8s -args \
	  -beside.report $(CURDIR)/docs/conformance/pods.md

.PHONY: setup-k8s
setup-k8s:
	tests/setup.sh packages containerd-2.4 k8s

.PHONY: clean
clean: ## remove bin/ and dist/
	rm -rf bin dist
