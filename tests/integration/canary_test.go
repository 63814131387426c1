// Copyright The coco Authors.
// SPDX-License-Identifier: Apache-2.0

package integration

import (
	"bytes"
	"crypto/rand"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/coco-shim/coco/policy"
	"github.com/coco-shim/coco/tests/harness"
)

// tokenForm is how a token begins: the first letters of two JSON objects in base64.
var tokenForm = regexp.MustCompile(`eyJ[A-Za-z0-9_-]{16,}\.eyJ`)

// holdSecrets is a command that has a secret as a file and in a variable, gets it and a token over the port as well,
// and stays.
var holdSecrets = []string{
	"sh", "-c", `cat /run/secrets/canary >/a; wget -qO /b http://127.0.0.1:8006/cdh/resource/default/db/canary; ` +
		`wget -qO /c 'http://127.0.0.1:8006/aa/token?token_type=kbs'; test -s /a -a -s /b -a -s /c && ` +
		`test "$CANARY" && echo ready; exec sleep 1000`,
}

// TestSecretsStayInTheGuest: after a pod that fails because of a secret's content, after one that has got a secret in
// four ways, and after its shim's crash, no file of containerd, shim and broker has the secret or a token, nor do
// events, figures and the memory of the shim. The guest's own memory has it, which shows that the search finds it.
func TestSecretsStayInTheGuest(t *testing.T) {
	d := daemon(t, primary)
	noLeaks(t)
	canary := "canary-" + rand.Text()
	p, netns := networkPolicy(t, d, holdSecrets...), podNetwork(t)
	p.Pod.WorkloadPort = 8006
	c := &p.Containers[0]
	c.Workload = policy.Workload{Resources: []string{"kbs:///default/db/canary"}, Calls: []string{policy.CallToken}}
	c.Secrets = []policy.Secret{
		{Resource: "kbs:///default/db/canary", File: "/run/secrets/canary", Renew: "10s"},
		{Resource: "kbs:///default/db/canary", Env: "CANARY"},
	}
	b := startBroker(t, "--allow-insecure")
	b.trusts(t, map[string]any{"launch_digest": []string{"abcde"}, "svn": []string{"1"}})
	put := func(path, secret string) {
		file := filepath.Join(t.TempDir(), "secret")
		write(t, file, secret)
		b.do(t, "resource", "put", path, file)
		if err := os.Remove(file); err != nil {
			t.Fatal(err)
		}
	}
	put("default/db/canary", canary)
	put("default/db/binary", canary+"\x00")
	config := func() string {
		text, digest := b.initdata(t, p, "insecure = true\n")
		b.trusts(t, map[string]any{"init_data": []string{digest}})
		return plainConfig(t, text)
	}
	events := followEvents(t, d)
	all := c.Secrets
	c.Secrets = append(all[:len(all):len(all)], policy.Secret{Resource: "kbs:///default/db/binary", Env: "BINARY"})
	r := runIn(t, d, netns, config(), holdSecrets...)
	refused(t, r, "secret kbs:///default/db/binary: variable BINARY: the secret has a zero byte")
	c.Secrets = all
	output := filepath.Join(t.TempDir(), "output")
	id := detached(t, d, harness.Runtime, append([]string{
		"--with-ns", "network:" + netns, "--runtime-config-path", config(), "--log-uri", "file://" + output, "--",
	}, holdSecrets...)...)
	until(t, "the container has its secrets", func() bool {
		text, _ := os.ReadFile(output) // it is not there yet
		return string(text) == "ready\n"
	})
	shim, _, err := harness.Pids(id)
	if err != nil {
		t.Fatal(err)
	}
	for what, text := range map[string]string{"the secret": canary, "a token": ".eyJ"} {
		if inMemory(t, id, text) == 0 {
			t.Errorf("%s is not in the guest's memory: the search finds nothing", what)
		}
	}
	if n := inMemoryOf(t, shim, canary); n > 0 {
		t.Errorf("the secret is %d times in the shim's memory", n)
	}
	figures := coco(t, "metrics", "--pod", id) + b.do(t, "attestations", "--json") + b.do(t, "resource", "list")

	if err := syscall.Kill(shim, syscall.SIGQUIT); err != nil { // it writes its stacks into the log
		t.Fatal(err)
	}
	until(t, "the shim's stacks are in the log", func() bool {
		text, err := os.ReadFile(d.Log())
		return err == nil && bytes.Contains(text, []byte("SIGQUIT"))
	})
	clean(t, "events", events(), canary)
	clean(t, "figures", []byte(figures+r.Stderr), canary)
	for _, dir := range []string{d.Dir, "/run/coco", filepath.Dir(b.cert), filepath.Join(filepath.Dir(b.cert), "../log")} {
		cleanDir(t, dir, canary)
	}
}

// until waits for a condition.
func until(t *testing.T, what string, ok func() bool) {
	t.Helper()
	for deadline := time.Now().Add(time.Minute); !ok(); time.Sleep(100 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("not in a minute: %s", what)
		}
	}
}

// followEvents collects containerd's events, until the function that it returns is called.
func followEvents(t *testing.T, d *harness.Daemon) (stop func() []byte) {
	t.Helper()
	var out bytes.Buffer
	cmd := d.Command(t.Context(), "events")
	cmd.Stdout = &out
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	return func() []byte {
		t.Helper()
		_ = cmd.Process.Signal(syscall.SIGTERM)
		_ = cmd.Wait()
		if !strings.Contains(out.String(), "/tasks/start") {
			t.Errorf("the events are not those of the container: %s", out.Bytes())
		}
		return out.Bytes()
	}
}

// clean checks that a text has neither a secret nor a token.
func clean(t *testing.T, what string, text []byte, secret string) {
	t.Helper()
	if bytes.Contains(text, []byte(secret)) {
		t.Errorf("the secret is in %s", what)
	}
	if token := tokenForm.Find(text); token != nil {
		t.Errorf("a token is in %s: %s", what, token)
	}
}

// cleanDir checks all files below a directory, or one file.
func cleanDir(t *testing.T, dir, secret string) {
	t.Helper()
	seen := 0
	err := filepath.WalkDir(dir, func(path string, e fs.DirEntry, err error) error {
		if err != nil || !e.Type().IsRegular() {
			return nil //nolint:nilerr // files of running containers come and go
		}
		text, err := os.ReadFile(path)
		if err != nil {
			return nil //nolint:nilerr // likewise
		}
		seen++
		clean(t, path, text, secret)
		return nil
	})
	if err != nil || seen == 0 && dir != "/run/coco" {
		t.Errorf("%d files below %s: %v", seen, dir, err)
	}
}
