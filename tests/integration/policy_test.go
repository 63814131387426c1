// Copyright The coco Authors.
// SPDX-License-Identifier: Apache-2.0

package integration

import (
	"crypto/sha256"
	"encoding/json"
	"fmt"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	specs "github.com/opencontainers/runtime-spec/specs-go"

	"github.com/coco-shim/coco/api/contract"
	"github.com/coco-shim/coco/plan/request"
	"github.com/coco-shim/coco/policy"
	"github.com/coco-shim/coco/policy/policytest"
	"github.com/coco-shim/coco/tests/harness"
)

// unknownLayer stands for a root hash that has to be learned.
var unknownLayer = strings.Repeat("0", 64)

// specOf is the specification that containerd makes for a command.
func specOf(t *testing.T, d *harness.Daemon, command ...string) *specs.Spec {
	t.Helper()
	id := newID(t)
	must(t, d, append([]string{"container", "create", harness.Image, id}, command...)...)
	defer remove(t, d, id)
	var info struct{ Spec *specs.Spec }
	if err := json.Unmarshal([]byte(must(t, d, "container", "info", id)), &info); err != nil {
		t.Fatal(err)
	}
	return info.Spec
}

// policyFor pins one container that runs a specification.
func policyFor(t *testing.T, s *specs.Spec) *policy.Policy {
	t.Helper()
	out, err := request.Convert(request.Input{ID: "any", Spec: s})
	if err != nil {
		t.Fatal(err)
	}
	c := policytest.Container("main", []string{unknownLayer}, nil, out.OCI, false)
	c.Process.Rlimits.FromHost = true
	c.Hostname = s.Hostname != ""
	c.Allow = policy.Capabilities{Logs: true, Stdin: true}
	return &policy.Policy{
		APIVersion: policy.APIVersion, Pod: policy.Pod{Hostname: policy.Value{Is: &s.Hostname}},
		Containers: []policy.Container{c},
	}
}

// initdataWith is initdata that holds a policy.
func initdataWith(t *testing.T, text string) string {
	t.Helper()
	return "version = \"0.1.0\"\nalgorithm = \"sha256\"\n[data]\n\"" + policy.FileName + "\" = '''" + text + "'''\n"
}

func encoded(t *testing.T, p *policy.Policy) string {
	t.Helper()
	b, err := policy.Encode(p)
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}

// runWith runs a command in a pod with initdata and further parameters of the kernel.
func runWith(t *testing.T, d *harness.Daemon, initdata, params string, command ...string) harness.Result {
	t.Helper()
	dir, id := t.TempDir(), newID(t)
	file := filepath.Join(dir, "config.toml")
	config := "[hypervisor]\n"
	if initdata != "" {
		write(t, filepath.Join(dir, "initdata.toml"), initdata)
		config += fmt.Sprintf("initdata = %q\n", filepath.Join(dir, "initdata.toml"))
	}
	write(t, file, config+fmt.Sprintf("kernel_params = %q\n[runtime]\ntemplate = \"off\"\n", params))
	r := ctr(t, d, append([]string{
		"run", "--rm", "--runtime", harness.Runtime, "--runtime-config-path", file, harness.Image, id,
	}, command...)...)
	t.Cleanup(func() { remove(t, d, id) })
	return r
}

// refused checks that nothing ran, and that the error has these words.
func refused(t *testing.T, r harness.Result, words ...string) {
	t.Helper()
	if r.Code == 0 || r.Stdout != "" {
		t.Errorf("it ran: %+v", r)
	}
	for _, w := range words {
		if !strings.Contains(r.Stderr, w) {
			t.Errorf("the error does not have %q: %s", w, r.Stderr)
		}
	}
}

var learned = regexp.MustCompile(`allow with: containers\[main\]\.image\.layers\[0\] = \\*"([0-9a-f]{64})`)

// TestAPolicyDecidesWhatRuns walks from a denial to its repair, and to what the policy does not allow.
func TestAPolicyDecidesWhatRuns(t *testing.T) {
	d := daemon(t, primary)
	noLeaks(t)
	command := []string{"echo", "hello"}
	p := policyFor(t, specOf(t, d, command...))
	run := func(command ...string) harness.Result {
		return runWith(t, d, initdataWith(t, encoded(t, p)), "", command...)
	}

	r := run(command...)
	refused(t, r, "denied [value] main/storages[0].driver_options[0]: expected")
	hash := learned.FindStringSubmatch(r.Stderr)
	if hash == nil {
		t.Fatalf("the denial does not tell how to repair the policy: %s", r.Stderr)
	}
	p.Containers[0].Image.Layers[0] = hash[1]
	if r := run(command...); r.Code != 0 || r.Stdout != "hello\n" {
		t.Fatalf("the repaired policy: %+v", r)
	}
	refused(t, run("echo", "other"), `denied [value] main/OCI.Process.Args[1]: expected`, `hello`,
		`allow with: containers[main]`)
	refused(t, run("echo", "hello", "more"), `denied [value] main/OCI.Process.Args`)

	p.Containers[0].Allow.Logs = false
	if r := run(command...); r.Code != 0 || r.Stdout != "" {
		t.Errorf("with closed logs: %+v", r)
	}
}

// TestAGuestThatTrustsNothing: what does not fit is told with its code, and nothing runs.
func TestAGuestThatTrustsNothing(t *testing.T) {
	d := daemon(t, primary)
	noLeaks(t)
	p := policyFor(t, specOf(t, d, "true"))
	text := initdataWith(t, encoded(t, p))
	digest := sha256.Sum256([]byte(text))
	digest[7] ^= 1
	other := fmt.Sprintf("%s=sha256:%x", contract.ParamInitdata, digest)
	for _, tc := range []struct{ name, initdata, params, want string }{
		{"initdata that differs in a bit from what the launch is bound to", text, other, "[initdata-mismatch]"},
		{"no initdata though the launch is bound to some", "", other, "[initdata-missing]"},
		{"a policy that is none", initdataWith(t, `{"apiVersion":"x"}`), "", "[policy-invalid]"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			refused(t, runWith(t, d, tc.initdata, tc.params, "true"), "agent health check", "guest trusts nothing "+tc.want)
		})
	}
}
