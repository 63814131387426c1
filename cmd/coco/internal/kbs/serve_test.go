// Copyright The coco Authors.
// SPDX-License-Identifier: Apache-2.0

package kbs

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/base64"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"sync"
	"testing"
	"time"

	"go.uber.org/goleak"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// lines collects what a broker prints, and tells the address in its log.
type lines struct {
	mu   sync.Mutex
	text bytes.Buffer
	addr chan string
}

var address = regexp.MustCompile(`msg="key broker" address=(\S+)`)

func (l *lines) Write(b []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if m := address.FindSubmatch(b); m != nil {
		l.addr <- string(m[1])
	}
	return l.text.Write(b)
}

func (l *lines) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.text.String()
}

// running is a broker of coco kbs serve.
type running struct {
	dir, url  string
	out, logs *lines
	stop      func() error
}

// serveDir runs a broker until the test ends, or stop is called.
func serveDir(t *testing.T, dir string, edit func(*serveOptions)) *running {
	t.Helper()
	r := &running{dir: dir, out: &lines{}, logs: &lines{addr: make(chan string, 1)}}
	o := serveOptions{dir: dir, listen: "127.0.0.1:0", selection: "sha256:0-23", now: time.Now, patience: 30 * time.Second}
	if edit != nil {
		edit(&o)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- o.run(ctx, r.out, r.logs) }()
	r.stop = sync.OnceValue(func() error { cancel(); return <-done })
	t.Cleanup(func() {
		if err := r.stop(); err != nil {
			t.Error(err)
		}
	})
	select {
	case a := <-r.logs.addr:
		r.url = "https://" + a
	case err := <-done:
		done <- err
		t.Fatalf("%v: %s", err, r.logs)
	}
	return r
}

// admin runs a command of an administrator.
func (r *running) admin(t *testing.T, args ...string) (string, error) {
	t.Helper()
	return run(t, append(args, "--url", r.url, "--cert", filepath.Join(r.dir, fileCert),
		"--token-file", filepath.Join(r.dir, "admin.token"))...)
}

func (r *running) must(t *testing.T, args ...string) string {
	t.Helper()
	out, err := r.admin(t, args...)
	if err != nil {
		t.Fatalf("%v: %v", args, err)
	}
	return out
}

// file writes a file of a test.
func file(t *testing.T, text string) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "file")
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

// start makes a directory, and a broker whose token the administrator has.
func start(t *testing.T, edit func(*serveOptions)) *running {
	t.Helper()
	dir := filepath.Join(t.TempDir(), "kbs")
	if _, err := run(t, "init", dir); err != nil {
		t.Fatal(err)
	}
	r := serveDir(t, dir, edit)
	if err := os.WriteFile(filepath.Join(dir, "admin.token"), []byte(r.out.String()), 0o600); err != nil {
		t.Fatal(err)
	}
	return r
}

// The way from nothing to a released secret, with the commands of docs/kbs.md.
func TestFromZeroToASecret(t *testing.T) {
	r := start(t, func(o *serveOptions) { o.allowInsecure = true })
	out := r.must(t, "resource", "put", "default/db/password", file(t, "a secret"))
	if out != "default/db/password is version 1\n" {
		t.Errorf("put: %q", out)
	}
	doc := file(t, "version = \"0.1.0\"\nalgorithm = \"sha256\"\n[data]\n\"policy.coco\" = \"x\"\n")
	get := []string{
		"get", "--url", r.url, "--cert", filepath.Join(r.dir, fileCert), "--insecure-sample", "--initdata", doc,
		"default/db/password",
	}
	if out, err := run(t, get...); exit(err) != 5 || out != "" {
		t.Fatalf("without reference values: %q, %v", out, err)
	}
	list := r.must(t, "attestations", "--json")
	m := regexp.MustCompile(`"init_data": "([0-9a-f]{64})"`).FindStringSubmatch(list)
	if m == nil || !strings.Contains(list, "executables is warning (33)") {
		t.Fatalf("attestations: %s", list)
	}
	row := `(?m)^1 .* sample .* ` + m[1][:12] + ` +contraindicated +default/db/password \(denied\) .*executables is warning`
	if table := r.must(t, "attestations"); !regexp.MustCompile(row).MatchString(table) {
		t.Errorf("attestations as a table: %s", table)
	}
	values := fmt.Sprintf(`{"launch_digest":["abcde"],"svn":["1"],"init_data":[%q]}`, m[1])
	message := file(t, `{"type":"sample","payload":"`+base64.StdEncoding.EncodeToString([]byte(values))+`"}`)
	ask := []string{"what-if", "--reference", message, "--set", "a"}
	if out := r.must(t, append(ask, "--json")...); !strings.Contains(out, `"gaining": 1`) {
		t.Errorf("what-if: %s", out)
	}
	if out := r.must(t, ask...); !strings.HasPrefix(out, "1 attestations: 1 would gain access, 0 would lose it\n") ||
		!strings.Contains(out, "contraindicated -> affirming") {
		t.Errorf("what-if as a table: %s", out)
	}
	r.must(t, "reference", "add", "--set", "a", "--expires", "2999-01-01", message)
	if out, err := run(t, get...); err != nil || out != "a secret" {
		t.Fatalf("%q, %v", out, err)
	}
	out = r.must(t, "reference", "ls")
	if !strings.Contains(out, "2999-01-01") || !strings.Contains(out, "launch_digest") {
		t.Errorf("reference ls: %s", out)
	}
	if _, err := r.admin(t, "resource", "put", "--if-version", "7", "default/db/password", message); err == nil {
		t.Error("another version was replaced")
	}
	r.must(t, "backup", filepath.Join(t.TempDir(), "backup"))
	r.must(t, "resource", "rm", "default/db/password")
	if out, err := run(t, get...); exit(err) != 6 {
		t.Errorf("after rm: %q, %v", out, err)
	}
	if out := r.must(t, "resource", "ls"); strings.Contains(out, "password") {
		t.Errorf("ls: %s", out)
	}
	if text := r.logs.String(); strings.Contains(text, "a secret") || !strings.Contains(text, "insecure: sample") {
		t.Errorf("log: %s", text)
	}
	if err := r.stop(); err != nil {
		t.Fatal(err)
	}
	out, err := run(t, "audit", "verify", filepath.Join(r.dir, fileAudit))
	if err != nil || !strings.Contains(out, "entries, head") {
		t.Errorf("audit verify: %s, %v", out, err)
	}
}

// Tokens of administrators can be taken back, and sets of reference values too.
func TestWhatWasGivenCanBeTakenBack(t *testing.T) {
	r := start(t, nil)
	r.must(t, "reference", "add", "--set", "old", file(t, `{"type":"sample","payload":"eyJhIjpbMV19"}`))
	r.must(t, "reference", "rm", "old")
	if _, err := r.admin(t, "reference", "rm", "old"); err == nil {
		t.Error("removed twice")
	}
	if out := r.must(t, "reference", "ls"); strings.Contains(out, "old") {
		t.Errorf("reference ls: %s", out)
	}
	if err := r.stop(); err != nil {
		t.Fatal(err)
	}
	next := serveDir(t, r.dir, func(o *serveOptions) { o.revoke = true })
	if _, err := next.admin(t, "resource", "ls"); err == nil {
		t.Error("a token that was taken back is accepted")
	}
	if err := os.WriteFile(filepath.Join(r.dir, "admin.token"), []byte(next.out.String()), 0o600); err != nil {
		t.Fatal(err)
	}
	next.must(t, "resource", "ls")
}

func TestPolicyCommands(t *testing.T) {
	r := start(t, nil)
	good := file(t, "package policy\nallow if data.plugin == \"resource\"\n")
	bad := file(t, "package policy\nallowed := true\n")
	cases := file(t, `[{"name":"yes","data":{"plugin":"resource"},"allow":true},
		{"name":"no","data":{"plugin":"x"},"allow":false}]`)
	wrong := file(t, `[{"name":"yes","data":{"plugin":"x"},"allow":true}]`)
	vector := file(t, "package policy\ntrust_claims := {\"hardware\": 2} if input.snp.a in query_reference_value(\"b\")\n")
	vectors := file(t, `[{"name":"known","input":{"snp":{"a":1}},"references":{"b":[1]},"vector":{"hardware":2}},
		{"name":"unknown","input":{"snp":{"a":2}},"references":{"b":[1]}}]`)
	for name, tc := range map[string]struct {
		args []string
		code int
	}{
		"set":            {[]string{"policy", "set", "resource", good}, 0},
		"set bad":        {[]string{"policy", "set", "resource", bad}, 1},
		"kind":           {[]string{"policy", "set", "other", good}, 1},
		"lint":           {[]string{"policy", "lint", "resource", good}, 0},
		"lint bad":       {[]string{"policy", "lint", "resource", bad}, 4},
		"lint no value":  {[]string{"policy", "lint", "attestation", vector, "--references", file(t, `{}`)}, 4},
		"lint scalar":    {[]string{"policy", "lint", "attestation", vector, "--references", file(t, `{"b":1}`)}, 4},
		"lint with list": {[]string{"policy", "lint", "attestation", vector, "--references", file(t, `{"b":[1]}`)}, 0},
		"test":           {[]string{"policy", "test", "resource", good, cases}, 0},
		"test fails":     {[]string{"policy", "test", "resource", good, wrong}, 4},
		"test vector":    {[]string{"policy", "test", "attestation", vector, vectors}, 0},
	} {
		if out, err := r.admin(t, tc.args...); exit(err) != tc.code {
			t.Errorf("%s: %s, %v", name, out, err)
		}
	}
	if out := r.must(t, "policy", "show", "resource"); !strings.Contains(out, `data.plugin == "resource"`) {
		t.Errorf("show: %s", out)
	}
}

// A second broker on the directory, a changed audit log and a changed store are refused.
func TestStartsThatAreRefused(t *testing.T) {
	r := start(t, nil)
	o := serveOptions{dir: r.dir, listen: "127.0.0.1:0", selection: "sha256:0", now: time.Now}
	fails := func(name, want string) {
		t.Helper()
		if err := o.run(t.Context(), io.Discard, io.Discard); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v, want %q", name, err, want)
		}
	}
	fails("second", "another process")
	r.must(t, "resource", "put", "a/b/c", file(t, "x"))
	if err := r.stop(); err != nil {
		t.Fatal(err)
	}
	for name, want := range map[string]string{fileAudit: "was changed", fileState: "damaged"} {
		path := filepath.Join(r.dir, name)
		good, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		bad := bytes.Clone(good)
		bad[len(bad)*2/3] ^= 1
		if err := os.WriteFile(path, bad, 0o600); err != nil {
			t.Fatal(err)
		}
		fails(name, want)
		if name == fileAudit {
			if err := os.WriteFile(path, good[:len(good)/2], 0o600); err != nil {
				t.Fatal(err)
			}
			fails("cut off", "missing")
			if err := os.Remove(path); err != nil {
				t.Fatal(err)
			}
			fails("removed", "no such file")
		}
		if err := os.WriteFile(path, good, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	o.selection = "sha256:9-7"
	fails("selection", "--pcr-selection")
	o.selection = "sha256:0"
	o.tpmCA = filepath.Join(r.dir, fileKey)
	fails("CA", "no certificate")
	o.tpmCA, o.url = "", "http://x"
	fails("URL", "--url")
}

// A client that sends its body slowly is let go.
func TestSlowBodies(t *testing.T) {
	r := start(t, func(o *serveOptions) { o.patience = 500 * time.Millisecond })
	cert, err := os.ReadFile(filepath.Join(r.dir, fileCert))
	if err != nil {
		t.Fatal(err)
	}
	pool := x509.NewCertPool()
	pool.AppendCertsFromPEM(cert)
	c, err := tls.Dial("tcp", strings.TrimPrefix(r.url, "https://"), &tls.Config{RootCAs: pool})
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	fmt.Fprintf(c, "POST /kbs/v0/auth HTTP/1.1\r\nHost: x\r\nContent-Length: 1000\r\n\r\n{")
	if err := c.SetReadDeadline(time.Now().Add(20 * time.Second)); err != nil {
		t.Fatal(err)
	}
	if _, err := io.ReadAll(c); err != nil {
		if n, ok := err.(net.Error); ok && n.Timeout() { //nolint:errorlint // of the connection itself
			t.Errorf("still open: %v", err)
		}
	}
}

func TestConfigOfAdministrators(t *testing.T) {
	keys := `{"keys":[{"kty":"EC","crv":"P-256","kid":"1","x":"MKBCTNIcKUSDii11ySs3526iDZ8AiTo7Tu6KPAqv7D4",` +
		`"y":"4Etl6SRW2YiLUrN5vfvVHuhp7x8PxltmWWlbbM4IFyM"}]}`
	shared := `{"keys":[{"kty":"oct","k":"AAAA"}]}`
	config := func(jwks string) string {
		return fmt.Sprintf("[[issuer]]\nissuer = \"https://id.example\"\naudience = \"kbs\"\njwks = %q\n"+
			"[[role]]\nname = \"team\"\nendpoints = [\"GET /kbs/v0/admin/resources\"]\n", jwks)
	}
	issuers, roles, err := readConfig(file(t, config(file(t, keys))), time.Now)
	if err != nil || len(issuers) != 1 || len(roles) != 1 || issuers[0].Audience != "kbs" {
		t.Errorf("%v, %v, %v", issuers, roles, err)
	}
	for name, text := range map[string]string{
		"shared key": config(file(t, shared)), "no file": config("/none"),
		"key": "other = 1\n", "no key": config(file(t, "{}")),
	} {
		if _, _, err := readConfig(file(t, text), time.Now); err == nil {
			t.Errorf("%s is accepted", name)
		}
	}
}
