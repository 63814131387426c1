// Copyright The coco Authors.
// SPDX-License-Identifier: Apache-2.0

package integration

import (
	"bufio"
	"bytes"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/coco-shim/coco/api/contract"
	"github.com/coco-shim/coco/internal/initdata"
	"github.com/coco-shim/coco/internal/testvm"
	"github.com/coco-shim/coco/policy"
	"github.com/coco-shim/coco/tests/harness"
)

// brokerHost is the address of the host's end of the cable that podNetwork makes.
const brokerHost = "10.213.78.1"

// podNetwork makes a network namespace with a cable to the host, and returns its path. The network of a pod is there
// before its containers are created, as the kubelet has it; ctr's own --cni makes it later.
func podNetwork(t *testing.T) string {
	t.Helper()
	name := fmt.Sprintf("coco-it-%d", os.Getpid())
	ip := func(args ...string) {
		if out, err := exec.CommandContext(t.Context(), "ip", args...).CombinedOutput(); err != nil {
			t.Fatalf("ip %v: %v: %s", args, err, out)
		}
	}
	ip("netns", "add", name)
	t.Cleanup(func() { _ = exec.Command("ip", "netns", "del", name).Run() }) // after the test; the cable goes with it
	ip("link", "add", "cocoit1", "type", "veth", "peer", "name", "eth0", "netns", name)
	ip("addr", "add", brokerHost+"/24", "dev", "cocoit1")
	ip("link", "set", "cocoit1", "up")
	ip("-n", name, "addr", "add", "10.213.78.2/24", "dev", "eth0")
	ip("-n", name, "link", "set", "eth0", "up")
	return "/run/netns/" + name
}

// keyBroker is a broker that runs, with secrets in it.
type keyBroker struct {
	url, cert string
	admin     []string // flags of an administrator's commands
	stop      func()
}

// startBroker starts coco kbs serve with two secrets. flags are further ones.
func startBroker(t *testing.T, flags ...string) *keyBroker {
	t.Helper()
	dir := t.TempDir()
	store := filepath.Join(dir, "kbs")
	coco(t, "kbs", "init", store, "--host", brokerHost, "--host", "127.0.0.1")
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	port := strconv.Itoa(l.Addr().(*net.TCPAddr).Port)
	l.Close()
	b := &keyBroker{url: "https://" + net.JoinHostPort(brokerHost, port), cert: filepath.Join(store, "tls.crt")}
	cmd := exec.CommandContext(t.Context(), filepath.Join(harness.Prefix(), "bin", "coco"),
		append([]string{"kbs", "serve", store, "--listen", ":" + port, "--url", b.url}, flags...)...)
	log, err := os.Create(filepath.Join(dir, "log"))
	if err != nil {
		t.Fatal(err)
	}
	defer log.Close()
	cmd.Stderr = log
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	b.stop = sync.OnceFunc(func() {
		_ = cmd.Process.Signal(syscall.SIGTERM)
		_ = cmd.Wait()
	})
	t.Cleanup(b.stop)
	token, lines := "", bufio.NewReader(out)
	for range 2 { // a heading and the token
		if token, err = lines.ReadString('\n'); err != nil {
			text, _ := os.ReadFile(log.Name())
			t.Fatalf("the broker prints no token: %v: %s", err, text)
		}
	}
	write(t, filepath.Join(dir, "token"), token)
	b.admin = []string{"--url", "https://127.0.0.1:" + port, "--cert", b.cert, "--token-file", filepath.Join(dir, "token")}
	for path, secret := range map[string]string{"default/db/password": "correct horse\n", "default/db/user": "alice"} {
		file := filepath.Join(dir, "secret")
		write(t, file, secret)
		b.do(t, "resource", "put", path, file)
	}
	return b
}

// do runs an administrator's command.
func (b *keyBroker) do(t *testing.T, args ...string) string {
	t.Helper()
	return coco(t, append(append([]string{"kbs"}, args...), b.admin...)...)
}

// trusts adds reference values in Trustee's form.
func (b *keyBroker) trusts(t *testing.T, values map[string]any) {
	t.Helper()
	payload, err := json.Marshal(values)
	if err != nil {
		t.Fatal(err)
	}
	message, err := json.Marshal(map[string]string{
		"version": "0.1.0", "type": "sample", "payload": base64.StdEncoding.EncodeToString(payload),
	})
	if err != nil {
		t.Fatal(err)
	}
	file := filepath.Join(t.TempDir(), "values.json")
	write(t, file, string(message))
	b.do(t, "reference", "add", file)
}

// found returns the broker's table of attestations, which must have a reason. The guest is told no more than that the
// policy denies.
func found(t *testing.T, b *keyBroker, reason string) string {
	t.Helper()
	table := b.do(t, "attestations")
	if !strings.Contains(table, reason) {
		t.Errorf("the broker's table does not have %q:\n%s", reason, table)
	}
	return table
}

// initdata is a pod's document with its policy and the broker. head begins aa.toml.
func (b *keyBroker) initdata(t *testing.T, p *policy.Policy, head string) (text, digest string) {
	t.Helper()
	cert, err := os.ReadFile(b.cert)
	if err != nil {
		t.Fatal(err)
	}
	d, err := initdata.New("sha256", map[string]string{
		policy.FileName: encoded(t, p),
		initdata.FileAA: fmt.Sprintf("%s[token_configs.kbs]\nurl = %q\ndeadline = \"25s\"\ncert = \"\"\"\n%s\"\"\"\n", head,
			b.url, cert),
	})
	if err != nil {
		t.Fatal(err)
	}
	return string(d.Text), hex.EncodeToString(d.Digest())
}

// showSecrets is a command that tells how a container sees its secrets.
var showSecrets = []string{
	"sh", "-c", `cat /run/secrets/password; stat -c '%a %u' /run/secrets/password; echo "$DB_USER"; ` +
		`grep -c ' /run/secrets/password .* tmpfs ' /proc/self/mountinfo; ` +
		`echo "$SEALED"; cat /etc/sealed/token; stat -c '%a %u' /etc/sealed/token; cat /etc/sealed/other; ` +
		`grep -c ' /etc/sealed .* tmpfs ' /proc/self/mountinfo`,
}

// seen is what showSecrets prints.
const seen = "correct horse\n440 0\nalice\n1\nbattery\nstaple\n440 0\nplain\n1\n"

// sealedPod has the sealed texts that the host brings to a pod: one in a variable, and a directory with files.
type sealedPod struct {
	dir, variable, file string // directory with the signer's key; texts
}

// newSealedPod makes a signer and seals a secret of the broker and one in an envelope.
func newSealedPod(t *testing.T) *sealedPod {
	t.Helper()
	dir := t.TempDir()
	in := func(name string) string { return filepath.Join(dir, name) }
	coco(t, "secret", "keygen", "--kid", "kbs:///default/sealed/signer", in("signer"))
	write(t, in("kek"), strings.Repeat("k", 32))
	write(t, in("value"), "staple\n")
	seal := func(args ...string) string {
		return strings.TrimSpace(coco(t, append([]string{"secret", "seal", "--key", in("signer.private.jwk")}, args...)...))
	}
	return &sealedPod{
		dir: dir, variable: seal("--resource", "kbs:///default/sealed/word"),
		file: seal("--resource", "kbs:///default/sealed/kek", "--kek", in("kek"), "--in", in("value")),
	}
}

// stored puts into a broker what opens the texts.
func (s *sealedPod) stored(t *testing.T, b *keyBroker) {
	t.Helper()
	write(t, filepath.Join(s.dir, "word"), "battery")
	for tag, file := range map[string]string{"signer": "signer.public.jwk", "kek": "kek", "word": "word"} {
		b.do(t, "resource", "put", "default/sealed/"+tag, filepath.Join(s.dir, file))
	}
}

// flags are ctr's for the variable and the directory with the files.
func (s *sealedPod) flags(t *testing.T) []string {
	t.Helper()
	files := t.TempDir()
	for name, text := range map[string]string{"token": s.file, "other": "plain\n"} {
		write(t, filepath.Join(files, name), text)
		if err := os.Chmod(filepath.Join(files, name), 0o440); err != nil {
			t.Fatal(err)
		}
	}
	return []string{
		"--env", "SEALED=" + s.variable, "--mount", "type=bind,src=" + files + ",dst=/etc/sealed,options=rbind:ro",
	}
}

// secretPolicy is the policy of a container that runs showSecrets.
func secretPolicy(t *testing.T, d *harness.Daemon) *policy.Policy {
	t.Helper()
	p := networkPolicy(t, d, showSecrets...)
	p.Containers[0].Secrets = []policy.Secret{
		{Resource: "kbs:///default/db/password", File: "/run/secrets/password", Mode: "440"},
		{Resource: "kbs:///default/db/user", Env: "DB_USER"},
		{Resource: "kbs:///default/sealed/word", Env: "SEALED", Sealed: true},
		{Resource: "kbs:///default/sealed/kek", File: "/etc/sealed/token", Sealed: true},
	}
	p.Pod.Sealed.Signers = []policy.Signer{{Kid: "kbs:///default/sealed/signer"}}
	c := &p.Containers[0]
	c.Process.Env = append(c.Process.Env, policy.Env{Name: "SEALED", Value: policy.Value{Type: policy.TypeSealed}})
	c.Mounts = append(c.Mounts, policy.Mount{
		Destination: "/etc/sealed", Type: "bind", Options: []string{"rbind", "ro"},
		Source: policy.Source{Copy: &policy.Content{Rule: policy.ContentUnpinned}},
	})
	return p
}

// networkPolicy is the policy of a container that runs a command, with a network.
func networkPolicy(t *testing.T, d *harness.Daemon, command ...string) *policy.Policy {
	t.Helper()
	p := policyFor(t, specOf(t, d, command...))
	p.Pod.Network = policy.Network{Interfaces: []policy.Interface{{Name: "eth0"}}, Routes: true, Neighbours: true}
	p.Pod.DNS.FromHost = true
	r := runWith(t, d, initdataWith(t, encoded(t, p)), "", command...)
	hash := learned.FindStringSubmatch(r.Stderr)
	if hash == nil {
		t.Fatalf("the denial does not tell the layer: %s", r.Stderr)
	}
	p.Containers[0].Image.Layers[0] = hash[1]
	return p
}

// unlogged checks that neither a text nor its secret is in the log of the daemon and the shims.
func (s *sealedPod) unlogged(t *testing.T, d *harness.Daemon) {
	t.Helper()
	log, err := os.ReadFile(d.Log())
	if err != nil {
		t.Fatal(err)
	}
	for _, text := range []string{s.variable, s.file, "battery", "staple"} {
		if bytes.Contains(log, []byte(text[max(0, len(text)-40):])) {
			t.Errorf("the log has %q", text)
		}
	}
}

// runPod runs showSecrets under a configuration, in a network namespace.
func (s *sealedPod) runPod(t *testing.T, d *harness.Daemon, netns, config string) harness.Result {
	t.Helper()
	return runFlags(t, d, netns, config, s.flags(t), showSecrets...)
}

// runIn runs a command under a configuration, in a network namespace.
func runIn(t *testing.T, d *harness.Daemon, netns, config string, command ...string) harness.Result {
	t.Helper()
	return runFlags(t, d, netns, config, nil, command...)
}

// runFlags runs a command likewise, with flags of ctr.
func runFlags(t *testing.T, d *harness.Daemon, netns, config string, flags []string, command ...string,
) harness.Result {
	t.Helper()
	id := newID(t)
	t.Cleanup(func() { remove(t, d, id) })
	return ctr(t, d, slices.Concat([]string{
		"run", "--rm", "--with-ns", "network:" + netns, "--runtime", harness.Runtime, "--runtime-config-path", config,
	}, flags, []string{harness.Image, id}, command)...)
}

// plainConfig is a configuration of the plain platform with initdata. Bind mounts are copied, as on other platforms.
func plainConfig(t *testing.T, text string) string {
	t.Helper()
	dir := t.TempDir()
	write(t, filepath.Join(dir, "initdata.toml"), text)
	file := filepath.Join(dir, "config.toml")
	write(t, file, fmt.Sprintf("[hypervisor]\ninitdata = %q\n[runtime]\ntemplate = \"off\"\nbinds = \"read-only\"\n",
		filepath.Join(dir, "initdata.toml")))
	return file
}

// TestInsecureSecretsNeedBothSides: without a platform that can prove anything, a pod gets its secrets only if its
// initdata and the broker agree to that.
func TestInsecureSecretsNeedBothSides(t *testing.T) {
	d := daemon(t, primary)
	noLeaks(t)
	p, netns, texts := secretPolicy(t, d), podNetwork(t), newSealedPod(t)
	strict, open := startBroker(t), startBroker(t, "--allow-insecure")
	for _, b := range []*keyBroker{strict, open} {
		b.trusts(t, map[string]any{"launch_digest": []string{"abcde"}, "svn": []string{"1"}})
	}
	texts.stored(t, open)
	agree := func(b *keyBroker, head string) string {
		text, digest := b.initdata(t, p, head)
		b.trusts(t, map[string]any{"init_data": []string{digest}})
		return plainConfig(t, text)
	}
	good := agree(open, "insecure = true\n")
	if r := texts.runPod(t, d, netns, good); r.Code != 0 || r.Stdout != seen {
		t.Errorf("both sides agree: %+v\n%s", r, open.do(t, "attestations"))
	}
	if log, err := os.ReadFile(d.Log()); err != nil || !bytes.Contains(log, []byte("insecure: aa.toml in the pod")) {
		t.Errorf("the log does not tell that the pod is insecure (%v)", err)
	}
	// The host exchanges the sealed texts of two places, or brings a text of its own.
	moved := sealedPod{dir: texts.dir, variable: texts.file, file: texts.variable}
	refused(t, moved.runPod(t, d, netns, good),
		"secret kbs:///default/sealed/word: variable SEALED: [moved] sealed secret: ",
		"kbs:///default/sealed/kek: only kbs:///default/sealed/word may be opened here")
	own := sealedPod{dir: texts.dir, variable: texts.variable, file: "a password of the host's"}
	refused(t, own.runPod(t, d, netns, good), "file /etc/sealed/token: [malformed] sealed secret")
	texts.unlogged(t, d)
	refused(t, texts.runPod(t, d, netns, agree(open, "")), "secret kbs:///default/db/password: [config]",
		"aa.toml does not say insecure = true")
	refused(t, texts.runPod(t, d, netns, agree(strict, "insecure = true\n")),
		"secret kbs:///default/db/password: [refused]", "evidence of sample proves nothing and is not accepted")
	other := *p
	other.Containers = append([]policy.Container{}, p.Containers...)
	other.Containers[0].Secrets = append([]policy.Secret{{Resource: "kbs:///default/db/password", Env: "A"}},
		p.Containers[0].Secrets[2:]...) // the sealed ones stay
	other.Pod.DNS.Lines, other.Pod.DNS.FromHost = nil, true
	text, _ := open.initdata(t, &other, "insecure = true\n") // the broker was not told of its digest
	refused(t, texts.runPod(t, d, netns, plainConfig(t, text)), "secret kbs:///default/db/password: [denied]",
		"Access denied by policy")
	found(t, open, "configuration is warning")
}

// TestAPodProvesWhatItIsAndGetsItsSecrets: on platform vtpm a pod gets its secrets by what was measured, without any
// switch that is insecure, and another kernel parameter, other initdata and an absent broker leave it without.
func TestAPodProvesWhatItIsAndGetsItsSecrets(t *testing.T) {
	testvm.Need(t, testvm.Swtpm, testvm.OVMF)
	d := daemon(t, primary)
	noLeaks(t)
	p, netns, texts := secretPolicy(t, d), podNetwork(t), newSealedPod(t)
	ca := filepath.Join(t.TempDir(), "ca")
	coco(t, "node", "tpm-ca", "--dir", ca)
	b := startBroker(t, "--tpm-ca", filepath.Join(ca, "ca.crt"))
	texts.stored(t, b)
	config := func(text, params string) string {
		dir := t.TempDir()
		write(t, filepath.Join(dir, "initdata.toml"), text)
		file := filepath.Join(dir, "config.toml")
		write(t, file, fmt.Sprintf("[hypervisor]\nplatform = \"vtpm\"\nboot_timeout = \"3m\"\nkernel_params = %q\n"+
			"firmware = \"/usr/share/ovmf/OVMF.fd\"\ninitdata = %q\n[vtpm]\nca = %q\n", params,
			filepath.Join(dir, "initdata.toml"), ca))
		return file
	}
	text, digest := b.initdata(t, p, "")
	good := config(text, "")
	values := filepath.Join(t.TempDir(), "launch.json")
	write(t, values, coco(t, "measure", "vtpm", "--config", good, "--reference-values", "broker"))
	b.do(t, "reference", "add", values)
	b.trusts(t, map[string]any{"init_data": []string{digest}, "tpm_pcr00_by_node": true})

	deny := func(what, config string, words ...string) {
		r := texts.runPod(t, d, netns, config)
		refused(t, r, words...)
		t.Logf("%s: %s", what, strings.TrimSpace(r.Stderr))
	}
	r := texts.runPod(t, d, netns, good)
	if r.Code != 0 || r.Stdout != seen {
		t.Errorf("what was measured: %+v", r)
	}
	t.Logf("the pod that the broker knows sees its secrets (file, mode and owner, variable):\n%s", r.Stdout)
	const secret = "secret kbs:///default/db/password: "
	deny("another kernel parameter", config(text, contract.ParamLog+"=info"), secret+"[denied]", "Access denied by policy")
	found(t, b, "executables is warning")
	p.Containers[0].Secrets[0].Mode = "444"
	other, _ := b.initdata(t, p, "")
	deny("other initdata", config(other, ""), secret+"[denied]", "Access denied by policy")
	t.Logf("what the broker has found:\n%s", found(t, b, "configuration is warning"))
	b.stop()
	began := time.Now()
	deny("no broker", good, secret+"[unavailable]", "connection refused")
	if took := time.Since(began); took > 3*time.Minute {
		t.Errorf("the pod fails after %v, and its deadline is 25s", took)
	}
}
