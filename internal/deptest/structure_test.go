// Copyright The coco Authors.
// SPDX-License-Identifier: Apache-2.0

package deptest

import (
	"bufio"
	"errors"
	"go/ast"
	"go/parser"
	"go/token"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

// edges is the project's structure. internal/* is spelled out per tree so that measurement can be
// kept free even of it.
var edges = Edges{
	"api/...":      {"api/..."},
	"api/contract": {},
	"internal/...": {"internal/...", "api/..."},

	"hypervisor":         {},
	"hypervisor/jail":    {"internal/..."},
	"hypervisor/launch":  {"hypervisor", "hypervisor/jail", "internal/..."},
	"hypervisor/console": {"hypervisor"},
	"hypervisor/vmm":     {"hypervisor", "hypervisor/console"},
	"hypervisor/qemu": {
		"api/contract", "hypervisor", "hypervisor/qemu/qmp", "hypervisor/qemu/template", "hypervisor/vmm", "internal/...",
	},
	"hypervisor/qemu/template": {},
	"hypervisor/qemu/qmp":      {"internal/..."},
	"hypervisor/qemu/qtest":    {"internal/..."},
	"hypervisor/clh": {
		"api/contract", "hypervisor", "hypervisor/clh/clhapi", "hypervisor/clh/unixhttp", "hypervisor/vmm",
		"internal/...",
	},
	"hypervisor/clh/clhapi":     {},
	"hypervisor/clh/unixhttp":   {"internal/..."},
	"hypervisor/clh/clhtest":    {"api/contract", "hypervisor/clh/clhapi", "hypervisor/qemu/qmp", "internal/..."},
	"hypervisor/probe":          {"internal/..."},
	"hypervisor/swtpm":          {"hypervisor", "internal/..."},
	"hypervisor/virtiofsd":      {"hypervisor", "hypervisor/jail", "hypervisor/launch", "internal/..."},
	"hypervisor/hypervisortest": {"api/contract", "hypervisor", "hypervisor/vmm", "internal/..."},
	"network/...":               {"network/...", "api/...", "internal/..."},
	"configs/...":               {"api/contract", "hypervisor", "internal/..."},
	"image/...":                 {"api/contract", "image/...", "internal/..."},
	"plan/launch":               {"api/contract", "hypervisor", "configs", "measurement/...", "internal/initdata"},
	"plan/request":              {"api/agent", "api/contract"},
	"plan/rootfs":               {"hypervisor", "api/...", "image/layer", "internal/..."},
	"plan/volume":               {"api/contract"},
	"policy":                    {"api/...", "internal/..."},
	"policy/policytest":         {"policy", "api/..."},
	"policy/compare":            {"policy", "plan/request", "api/...", "internal/..."},
	"policy/copies": {
		"policy", "policy/compare", "policy/signed", "plan/request", "api/...", "internal/...",
	},
	"policy/engine": {
		"policy", "policy/compare", "policy/copies", "api/...", "internal/...",
	},
	"policy/signed":    {},
	"policy/decisions": {"internal/words"},
	"policy/gen":       {"api/agent", "api/contract", "plan/request", "plan/volume", "policy", "policy/gen/..."},
	"policy/gen/engine": { // converts what an engine wrote as gen converts what it predicts
		"api/agent", "api/contract", "plan/request", "plan/volume", "policy", "policy/gen",
	},
	"policy/gen/filters":   {},
	"policy/gen/manifest":  {},
	"policy/gen/predict":   {"api/contract", "policy"},
	"policy/lint":          {"policy", "policy/compare"},
	"policy/katarego":      {"api/agent", "internal/words", "policy/katarego/pipe"},
	"policy/katarego/pipe": {"api/agent"},
	"policy/rego":          {},
	"policy/simulate":      {"api/agent", "policy", "policy/engine"},
	"virtcontainers": {
		"virtcontainers/boot", "virtcontainers/cgroups", "virtcontainers/copytree", "virtcontainers/guest",
		"virtcontainers/hooks", "virtcontainers/layers", "virtcontainers/nic", "virtcontainers/process",
		"virtcontainers/pulse", "virtcontainers/share", "virtcontainers/state", "virtcontainers/stream",
		"virtcontainers/turns", "virtcontainers/upper", "virtcontainers/users", "plan/launch", "plan/request",
		"plan/rootfs", "metrics", "hypervisor", "network", "configs", "api/agent", "api/contract", "internal/...",
	},
	"virtcontainers/boot": {
		"virtcontainers/foresight", "virtcontainers/hostapi", "virtcontainers/life", "virtcontainers/likeness",
		"virtcontainers/bootfiles", "virtcontainers/cgroups", "virtcontainers/disk", "virtcontainers/guest",
		"virtcontainers/hooks", "virtcontainers/hostvolume", "virtcontainers/layers", "virtcontainers/nic",
		"virtcontainers/share", "virtcontainers/state", "virtcontainers/upper", "virtcontainers/users", "plan/...",
		"hypervisor", "network", "configs", "image/layer", "api/agent", "api/contract", "internal/...",
	},
	"virtcontainers/hostapi": {
		"virtcontainers/cgroups", "virtcontainers/layers", "virtcontainers/nic", "virtcontainers/share",
		"plan/launch", "hypervisor", "network", "image/layer", "api/agent",
	},
	"virtcontainers/foresight": {"virtcontainers/hostapi", "api/agent"},
	"virtcontainers/life":      {},
	"virtcontainers/likeness":  {"hypervisor", "configs"},
	"virtcontainers/bootfiles": {
		"hypervisor", "plan/launch", "configs", "measurement/bzimage", "measurement/kernelhashes",
	},
	"virtcontainers/scratch":    {"internal/..."},
	"virtcontainers/standby":    {"virtcontainers/state", "internal/fdpass"},
	"virtcontainers/state":      {"virtcontainers/hostfs", "internal/..."},
	"virtcontainers/hostfs":     {},
	"virtcontainers/hostvolume": {"plan/volume", "virtcontainers/hostfs"},
	"virtcontainers/copytree":   {"virtcontainers/hostfs", "api/agent", "api/contract", "internal/..."},
	"virtcontainers/answers":    {"api/agent", "internal/..."},
	"virtcontainers/guest": {
		"virtcontainers/answers", "hypervisor", "api/agent", "api/contract", "internal/line", "internal/portmux",
	},
	"virtcontainers/layers": {"plan/rootfs", "image/layer", "configs"},
	"virtcontainers/upper":  {"virtcontainers/copytree", "virtcontainers/hostfs", "internal/upperwire"},
	"virtcontainers/disk": {
		"virtcontainers/hostfs", "virtcontainers/layers", "virtcontainers/scratch", "virtcontainers/state",
		"plan/rootfs", "hypervisor", "configs", "image/layer", "internal/...",
	},
	"virtcontainers/process": {
		"virtcontainers/answers", "virtcontainers/guest", "virtcontainers/hostfs", "virtcontainers/pulse",
		"virtcontainers/stream", "virtcontainers/turns", "hypervisor", "api/agent", "api/contract", "internal/fsm",
	},
	"virtcontainers/share": {
		"virtcontainers/copytree", "virtcontainers/guest", "virtcontainers/hostfs", "virtcontainers/hostvolume",
		"virtcontainers/layers", "plan/request", "plan/rootfs", "plan/volume", "hypervisor", "configs",
		"image/layer", "api/agent", "api/contract", "internal/...",
	},
	"virtcontainers/nic": {
		"hypervisor", "network", "network/netns", "configs", "api/agent/...", "internal/...",
	},
	"virtcontainers/stream":  {"virtcontainers/guest", "api/agent"},
	"virtcontainers/pulse":   {},
	"virtcontainers/turns":   {},
	"virtcontainers/cgroups": {"internal/..."},
	"virtcontainers/users":   {"internal/..."},
	"virtcontainers/hooks":   {"virtcontainers/state", "internal/..."},
	"virtcontainers/host": {
		"virtcontainers/boot", "virtcontainers/bootfiles", "virtcontainers/cgroups", "virtcontainers/layers",
		"virtcontainers/nic", "plan/launch", "hypervisor", "hypervisor/jail", "hypervisor/launch",
		"hypervisor/qemu", "hypervisor/clh", "hypervisor/virtiofsd", "hypervisor/swtpm",
		"hypervisor/qemu/template", "hypervisor/vmm", "virtcontainers/users", "network", "network/localhost",
		"network/nameserver", "network/netns", "configs", "api/agent", "api/contract", "internal/...",
	},
	"shim": {
		"api/containerd", "shim/bootstrap", "shim/bundle", "shim/events", "shim/task", "shim/sandbox",
		"internal/...",
	},
	"shim/bundle":    {"api/contract"},
	"shim/bootstrap": {"api/containerd", "shim/bundle", "internal/..."},
	"shim/events":    {"api/containerd", "internal/..."},
	"shim/stdio":     {"internal/..."},
	"shim/rpc":       {"internal/wire", "internal/words"},
	"shim/stats":     {"api/agent", "internal/procinfo", "internal/wire", "internal/words"},
	"shim/task": {
		"virtcontainers", "virtcontainers/process", "virtcontainers/stream", "api/...", "shim/bundle", "shim/rpc",
		"shim/stats", "shim/stdio", "internal/...",
	},
	"shim/sandbox": {"api/contract", "shim/bundle", "shim/rpc", "shim/stats", "shim/task", "internal/..."},
	"shim/shimtest/...": {
		"shim", "shim/task", "shim/shimtest/...", "virtcontainers", "virtcontainers/process",
		"virtcontainers/stream", "api/agent", "tests/harness",
	},
	"agent":         {"agent/...", "api/...", "internal/..."},
	"agent/gate":    {"policy/engine", "policy/decisions", "api/contract", "internal/..."},
	"agent/burst":   {},
	"agent/upper":   {"agent/gate", "api/contract", "internal/upperwire"},
	"agent/cotrust": {"agent/reap", "api/contract", "trust/wire"},
	"agent/pull":    {"agent/beneath", "agent/cotrust", "agent/layer", "image/verity", "trust/wire"},
	"agent/secrets": {
		"agent/beneath", "agent/cotrust", "agent/reap", "internal/fdpass", "internal/undo", "policy", "trust/wire",
	},
	"agent/rego":  {"agent/reap", "api/agent", "api/contract", "policy/katarego/pipe"},
	"agent/trust": {"agent/disk", "policy", "policy/engine", "api/contract", "internal/..."},
	"agent/...": {
		"agent/...", "api/...", "image/verity/...", "image/erofs/...", "image/ext4",
		"internal/...",
	},
	"guest/...":               {"api/contract", "guest/...", "image/...", "internal/..."},
	"metrics":                 {"internal/words"},
	"attestation":             {},
	"attestation/...":         {"attestation/..."},
	"attestation/eventlog":    {"attestation", "measurement/..."},
	"attestation/tdx/...":     {"attestation", "attestation/eventlog", "attestation/tdx", "measurement/..."},
	"attestation/tpm/...":     {"attestation", "attestation/eventlog", "attestation/tpm", "measurement/..."},
	"attestation/guest":       {"attestation/snp", "internal/tpm2"},
	"attestation/tpmca":       {"internal/tpm2"},
	"attestation/kbs":         {"internal/strictjson"},
	"attestation/kbs/client":  {"attestation/kbs", "internal/guesttls"},
	"attestation/kbs/kbstest": {"attestation/kbs"},
	"attestation/sealed":      {"attestation/kbs", "internal/strictjson"},
	"attestation/broker": {
		"attestation/...", "internal/initdata", "internal/version", "metrics", "policy/rego",
	},
	"attestation/broker/audit": {},
	"attestation/broker/evidence": {
		"attestation", "attestation/collateral", "attestation/snp", "attestation/tdx", "attestation/tpm",
	},
	"attestation/broker/references": {},
	"attestation/broker/session":    {"attestation/kbs"},
	"attestation/broker/store":      {},
	"attestation/broker/token":      {},
	"azure/...": {
		"azure/akv", "azure/azhttp", "azure/kwp", "azure/maa", "azure/release", "azure/thim", "internal/guesttls",
	},
	"azure/fake": {"attestation", "attestation/snp", "attestation/tpm", "azure/akv", "azure/kwp", "azure/release"},
	"trust": {
		"attestation/...", "internal/fdpass", "internal/initdata", "internal/tpm2", "internal/version", "policy", "trust/...",
	},
	"trust/azure": {"attestation/snp", "attestation/tdx", "azure/...", "internal/initdata", "policy"},
	"trust/images": {
		"image/pull", "image/registry", "image/sign", "internal/initdata", "policy", "trust/config", "trust/wire",
	},
	"trust/workload":  {"attestation/kbs/client", "internal/fdpass", "policy", "trust/wire"},
	"trust/config":    {"attestation/kbs", "internal/initdata"},
	"trust/wire":      {},
	"measurement":     {},
	"measurement/...": {"measurement/..."},
	"cmd/coco-agent":  {"agent/...", "api/contract", "internal/...", "policy/decisions", "policy/engine", "trust/wire"},
	"cmd/coco-rego":   {"policy/katarego", "policy/katarego/pipe"},
	"cmd/coco-trust":  {"trust", "trust/wire"},
	"cmd/containerd-shim-coco-v2": {
		"shim/...", "virtcontainers/...", "hypervisor/...", "network", "configs", "api/...", "image/...",
		"internal/...",
	},
	"cmd/coco-oci":              {"cmd/coco-oci/internal/..."},
	"cmd/coco-oci/internal/...": {"cmd/coco-oci/internal/...", "api/...", "shim/bundle", "internal/..."},
	"cmd/coco":                  {"cmd/coco/internal/...", "hypervisor/launch"},
	"cmd/coco/internal/azure": {
		"attestation/guest", "attestation/snp", "azure/...",
		"cmd/coco/internal/cli", "cmd/coco/internal/show", "internal/initdata",
	},
	"cmd/coco/internal/cache": {"cmd/coco/internal/show", "configs", "image/layer"},
	"cmd/coco/internal/check": {
		"cmd/coco/internal/show", "configs", "guest", "hypervisor/...", "virtcontainers/cgroups", "internal/...",
	},
	"cmd/coco/internal/endorse":  {"attestation", "attestation/cose", "cmd/coco/internal/cli", "cmd/coco/internal/show"},
	"cmd/coco/internal/evidence": {"attestation/guest"},
	"cmd/coco/internal/nodetpm":  {"attestation/tpmca", "hypervisor/swtpm", "internal/tpm2"},
	"cmd/coco/internal/guest": {
		"api/contract", "cmd/coco/internal/progress", "cmd/coco/internal/show", "guest", "guest/part",
	},
	"cmd/coco/internal/image": {
		"cmd/coco/internal/cli", "cmd/coco/internal/progress", "cmd/coco/internal/show", "image/...",
		"internal/strictjson",
	},
	"cmd/coco/internal/cli": {},
	"cmd/coco/internal/kbs": {
		"attestation/...", "cmd/coco/internal/cli", "cmd/coco/internal/kbs/page", "cmd/coco/internal/pods",
		"cmd/coco/internal/show", "policy/rego",
	},
	"cmd/coco/internal/kbs/page": {"attestation/broker/...", "cmd/coco/internal/webpage"},
	"cmd/coco/internal/webpage":  {},
	"cmd/coco/internal/secret":   {"attestation/sealed", "cmd/coco/internal/cli", "cmd/coco/internal/show"},
	"cmd/coco/internal/policy": {
		"api/contract", "cmd/coco/internal/cli", "cmd/coco/internal/measure", "cmd/coco/internal/pods",
		"cmd/coco/internal/policy/...", "cmd/coco/internal/progress", "cmd/coco/internal/show",
		"cmd/coco/internal/signer", "configs", "internal/initdata", "policy/...", "trust/config",
	},
	"cmd/coco/internal/policy/container": { // its own command: package policy is as large as packages get
		"cmd/coco/internal/cli", "cmd/coco/internal/policy/images", "cmd/coco/internal/progress", "internal/initdata",
		"policy", "policy/gen/engine",
	},
	"cmd/coco/internal/policy/images": { // the flags that gen and gen container have in common
		"cmd/coco/internal/cli", "cmd/coco/internal/progress", "image/resolve", "internal/initdata", "policy", "policy/gen",
		"policy/gen/predict",
	},
	"cmd/coco/internal/policy/foresee": {
		"api/agent", "cmd/coco/internal/cli", "internal/foresee", "policy", "policy/compare", "policy/engine",
	},
	"cmd/coco/internal/signer":   {"attestation/sealed", "policy"},
	"cmd/coco/internal/progress": {},
	"cmd/coco/internal/measure": {
		"api/contract", "cmd/coco/internal/measure/...", "configs", "hypervisor", "hypervisor/qemu/...",
		"measurement/...", "plan/launch", "virtcontainers/bootfiles", "internal/...",
	},
	"cmd/coco/internal/measure/input":  {"measurement/...", "plan/launch", "virtcontainers/bootfiles"},
	"cmd/coco/internal/measure/report": {"cmd/coco/internal/show", "measurement"},
	"cmd/coco/internal/measure/sev":    {"cmd/coco/internal/measure/...", "measurement/..."},
	"cmd/coco/internal/measure/td":     {"cmd/coco/internal/measure/...", "measurement/..."},
	"cmd/coco/internal/measure/tpm": {
		"cmd/coco/internal/measure/...", "configs", "internal/initdata", "measurement/...", "plan/launch",
	},
	"cmd/coco/internal/node": {
		"cmd/coco/internal/announce", "cmd/coco/internal/nodetpm", "cmd/coco/internal/pods", "cmd/coco/internal/show",
		"node/...",
	},
	"node/...": {"node/..."},
	"cmd/coco/internal/pods": {
		"cmd/coco/internal/show", "cmd/coco/internal/webpage", "configs", "metrics", "plan/launch", "virtcontainers",
		"virtcontainers/boot", "internal/words", "api/contract", "api/containerd", "internal/initdata", "policy",
		"policy/decisions", "shim/bundle", "virtcontainers/state",
	},
	"cmd/coco/internal/debug":    {"cmd/coco/internal/pods", "configs", "virtcontainers", "virtcontainers/state"},
	"cmd/coco/internal/announce": {"internal/words"},
	"cmd/coco/internal/inside":   {"api/containerd", "cmd/coco/internal/pods"},
	"cmd/coco/internal/show":     {},
	"cmd/coco/internal/verify": {
		"attestation/...", "cmd/coco/internal/cli", "cmd/coco/internal/show", "internal/initdata",
	},
	"cmd/coco/internal/version":  {"cmd/coco/internal/show", "internal/version"},
	"tests/...":                  {"*"},
	"cmd/coco/internal/standby":  {"cmd/coco/internal/show", "configs", "virtcontainers/standby"},
	"cmd/coco/internal/template": {"cmd/coco/internal/show", "configs", "virtcontainers/host"},
}

func TestImportEdges(t *testing.T) {
	edges.Check(t, List(t, Module+"/..."))
}

func TestBinarySizes(t *testing.T) {
	MaxSize(t, Module+"/cmd/containerd-shim-coco-v2", 9_000_000)
	MaxSize(t, Module+"/cmd/coco-agent", 9_000_000)
	MaxSize(t, Module+"/cmd/coco-oci", 5_300_000)
	MaxSize(t, Module+"/cmd/coco-rego", 21_500_000)
}

func TestMeasurementKnowsOnlyTheStandardLibrary(t *testing.T) {
	for _, p := range List(t, Module+"/measurement/...") {
		for _, imp := range p.Imports {
			if strings.Contains(strings.Split(imp, "/")[0], ".") && !strings.HasPrefix(imp, Module+"/measurement") {
				t.Errorf("%s imports %s", p.ImportPath, imp)
			}
		}
	}
}

// impure maps what a plan must not import to what it would depend on. Plans are computed on other machines too, by
// `coco measure` and by verifiers, and must come out the same.
var impure = map[string]string{
	"os": "files and the environment", "os/exec": "other programs", "os/signal": "signals", "os/user": "users of the host",
	"io/fs": "files", "io/ioutil": "files", "path/filepath": "files and the working directory; use path",
	"syscall":          "the kernel",
	"golang.org/x/sys": "the kernel", "net": "the network", "time": "the clock", "runtime": "the size of the host",
	"log": "the clock", "log/slog": "the clock", "math/rand": "chance", "crypto/rand": "chance",
}

// impureTypes are the packages whose types plans are made of though they import what a plan must not.
var impureTypes = map[string]string{
	"hypervisor":  "VMSpec holds descriptors (os.File) and a duration, which are passed on",
	"image/layer": "Source and Params describe layers; building them is for the caller",
	"configs":     "Config has durations, which are passed on; Load and Boot read files, and are for the caller",
}

func TestPlansDependOnNothingButTheirInput(t *testing.T) {
	pkgs := map[string]Package{}
	for _, p := range List(t, Module+"/...") {
		pkgs[p.ImportPath] = p
	}
	seen := map[string]bool{}
	var walk func(from string)
	walk = func(from string) {
		short := strings.TrimPrefix(from, Module+"/")
		if seen[from] || impureTypes[short] != "" {
			return
		}
		seen[from] = true
		for _, imp := range pkgs[from].Imports {
			for bad, why := range impure {
				if imp == bad || strings.HasPrefix(imp, bad+"/") {
					t.Errorf("%s, of which a plan is made, imports %s: a plan must not depend on %s", short, imp, why)
				}
			}
			if strings.HasPrefix(imp, Module+"/") {
				walk(imp)
			}
		}
	}
	plans := 0
	for path := range pkgs {
		if strings.HasPrefix(path, Module+"/plan/") {
			plans++
			walk(path)
		}
	}
	if plans == 0 {
		t.Error("there is no package below plan/")
	}
}

// readers are functions and methods, of packages in impureTypes and of the types that they hold, that look at the host.
var readers = []string{
	"Load", "Boot", "CheckFiles", "ReadInitdata", "Stat", "Read", "ReadAt", "Name", "Fd",
	"Dial", "Launch",
}

func TestPlansCallNothingThatLooksAtTheHost(t *testing.T) {
	root := strings.TrimSpace(output(t, "git", "rev-parse", "--show-toplevel"))
	for _, f := range strings.Fields(output(t, "git", "-C", root, "ls-files", "plan/*.go")) {
		if strings.HasSuffix(f, "_test.go") {
			continue
		}
		set := token.NewFileSet()
		file, err := parser.ParseFile(set, filepath.Join(root, f), nil, 0)
		if errors.Is(err, fs.ErrNotExist) {
			continue // deleted in the work tree
		}
		if err != nil {
			t.Fatal(err)
		}
		ast.Inspect(file, func(n ast.Node) bool {
			call, ok := n.(*ast.CallExpr)
			if !ok {
				return true
			}
			if s, ok := call.Fun.(*ast.SelectorExpr); ok && slices.Contains(readers, s.Sel.Name) {
				t.Errorf("%s calls %s: what a plan needs of the host is in its input", set.Position(call.Pos()), s.Sel.Name)
			}
			return true
		})
	}
}

// doors are what serves the host in the guest, with the only packages of the agent that may use it. agent.NewServer
// puts it behind the gate; the program gets no listener and no handler to go around it.
var doors = map[string][]string{
	"github.com/containerd/ttrpc": {"agent"},
	"github.com/mdlayher/vsock":   {"agent/transport"},
	Module + "/internal/portmux":  {"agent/transport"},
	Module + "/agent/transport":   {"agent"},
	Module + "/agent/stdio":       {"agent"},
	Module + "/agent/forward":     {"agent"},
	Module + "/agent/resolver":    {"agent"},
	Module + "/agent/upper":       {"agent"},
	Module + "/agent/gate": {
		"agent", "agent/stdio", "agent/forward", "agent/resolver", "agent/upper", "cmd/coco-agent",
	},
	"net": {
		"agent", "agent/forward", "agent/gate", "agent/netcfg", "agent/resolver", "agent/runner", "agent/stdio",
		"agent/transport", "agent/upper",
		// Containers come in by these. They listen on Unix sockets and on 127.0.0.1, which the gate never forwards to, and
		// what comes in goes to coco-trust unread.
		"agent/caller", "agent/secrets", "agent/workload",
	},
}

func TestTheAgentHasOneWayIn(t *testing.T) {
	used := map[string]bool{}
	for _, p := range List(t, Module+"/cmd/coco-agent", Module+"/agent/...") {
		from := strings.TrimPrefix(p.ImportPath, Module+"/")
		for _, imp := range p.Imports {
			may, guarded := doors[imp]
			if guarded && !slices.Contains(may, from) {
				t.Errorf("%s imports %s; of the agent only %v may: what the host sends passes agent.NewServer", from, imp, may)
			}
			used[imp+" "+from] = true
		}
	}
	for imp, may := range doors {
		for _, from := range may {
			if !used[imp+" "+from] {
				t.Errorf("%s does not import %s: take it off the list", from, imp)
			}
		}
	}
}

// longFiles may pass the limit, each with the reason.
var longFiles = map[string]string{}

func TestNoFileIsLongerThan500LinesWithoutAReason(t *testing.T) {
	root := strings.TrimSpace(output(t, "git", "rev-parse", "--show-toplevel"))
	for _, f := range strings.Fields(output(t, "git", "-C", root, "ls-files", "*.go")) {
		if strings.HasSuffix(f, ".pb.go") || longFiles[f] != "" {
			continue
		}
		if n := countLines(t, filepath.Join(root, f)); n > 500 {
			t.Errorf("%s has %d lines: split it, or give the reason in longFiles", f, n)
		}
	}
}

func output(t *testing.T, name string, args ...string) string {
	t.Helper()
	out, err := exec.CommandContext(t.Context(), name, args...).Output()
	if err != nil {
		t.Skipf("%s %v: %v: not a git checkout", name, args, err)
	}
	return string(out)
}

func countLines(t *testing.T, path string) int {
	t.Helper()
	f, err := os.Open(path)
	if os.IsNotExist(err) {
		return 0 // deleted in the work tree
	}
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	n := 0
	sc := bufio.NewScanner(f)
	sc.Buffer(nil, 1<<20)
	for sc.Scan() {
		n++
	}
	return n
}
