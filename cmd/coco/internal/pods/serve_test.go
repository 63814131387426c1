// Copyright The coco Authors.
// SPDX-License-Identifier: Apache-2.0

package pods

import (
	"context"
	"crypto/sha256"
	"encoding/base64"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/spf13/cobra"
)

// begin runs a command that serves and returns the address that it tells.
func begin(t *testing.T, cmd *cobra.Command, args ...string) (told string) {
	t.Helper()
	ctx, cancel := context.WithCancel(t.Context())
	r, w := io.Pipe()
	cmd.SilenceErrors, cmd.SilenceUsage = true, true
	cmd.SetErr(w)
	cmd.SetArgs(args)
	done := make(chan error, 1)
	go func() { done <- cmd.ExecuteContext(ctx) }()
	t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			t.Errorf("serve = %v", err)
		}
	})
	line := make([]byte, 300)
	n, err := r.Read(line)
	if err != nil {
		t.Fatal(err)
	}
	_, told, _ = strings.Cut(strings.TrimSpace(string(line[:n])), " at ")
	return told
}

// get asks a URL, at a Unix socket unless that is empty.
func get(t *testing.T, socket, method, url, host string) (*http.Response, string) {
	t.Helper()
	transport := &http.Transport{}
	if socket != "" {
		transport.DialContext = func(ctx context.Context, _, _ string) (net.Conn, error) {
			return new(net.Dialer).DialContext(ctx, "unix", socket)
		}
	}
	defer transport.CloseIdleConnections()
	req, err := http.NewRequestWithContext(t.Context(), method, url, http.NoBody)
	if err != nil {
		t.Fatal(err)
	}
	req.Host = host
	resp, err := (&http.Client{Transport: transport, Timeout: 10 * time.Second}).Do(req)
	if err != nil {
		t.Fatal(err)
	}
	body, err := io.ReadAll(resp.Body)
	if cerr := resp.Body.Close(); err != nil || cerr != nil {
		t.Fatal(err, cerr)
	}
	return resp, string(body)
}

func TestNodeMetrics(t *testing.T) {
	config := servePods(t)
	for _, make := range []func() *cobra.Command{NodeMetricsCommand, MetricsCommand} {
		url := begin(t, make(), "--config", config, "--listen", "127.0.0.1:0")
		resp, body := get(t, "", http.MethodGet, url, "")
		if resp.StatusCode != http.StatusOK || !strings.Contains(body, `coco_pod_info{pod="bb22",`) ||
			!strings.Contains(body, "coco_node_pods 2\n") || !strings.Contains(body, "coco_node_pods_silent 0\n") {
			t.Errorf("GET %s = %s, %s", url, resp.Status, body)
		}
	}
	socket := filepath.Join(filepath.Dir(config), "m.sock")
	begin(t, NodeMetricsCommand(), "--config", config, "--listen", "unix://"+socket)
	if _, body := get(t, socket, http.MethodGet, "http://node/metrics", ""); !strings.Contains(body, `pod="aa11"`) {
		t.Errorf("the Unix socket serves %q", body)
	}
	if info, err := os.Stat(socket); err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("the socket has mode %v, %v", info.Mode(), err)
	}
	_, err := run(t, NodeMetricsCommand(), "--config", config, "--listen", "unix://"+socket)
	if err == nil || !strings.Contains(err.Error(), "another process") {
		t.Errorf("a socket that is served = %v", err)
	}
	out, err := run(t, NodeMetricsCommand(), "--config", config)
	if err != nil || !strings.Contains(out, "coco_node_pods 2\n") {
		t.Errorf("node metrics prints %q, %v", out, err)
	}
}

func TestAddressesThatAreRefused(t *testing.T) {
	file := filepath.Join(t.TempDir(), "file")
	write(t, file, "")
	for address, want := range map[string]string{
		"0.0.0.0:1": "loopback", "10.0.0.1:1": "loopback", "[::]:1": "loopback", ":9469": "expected IP:PORT",
		"localhost:1": "expected IP:PORT", "127.0.0.1": "expected IP:PORT", "unix://x": "not absolute",
		"unix://" + file: "no socket",
	} {
		if l, err := listen(t.Context(), address); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("listen(%s) = %v, %v, want %q", address, l, err, want)
		}
	}
}

// TestASocketOfAnotherKindIsNotRemoved: it refuses streams, and a process serves it all the same. One that nobody
// serves is replaced.
func TestASocketOfAnotherKindIsNotRemoved(t *testing.T) {
	path := filepath.Join(t.TempDir(), "log.sock")
	c, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Name: path, Net: "unixgram"})
	if err != nil {
		t.Fatal(err)
	}
	if l, err := listen(t.Context(), "unix://"+path); err == nil || !strings.Contains(err.Error(), "another process may") {
		t.Errorf("listen in the place of a socket of datagrams = %v, %v", l, err)
	}
	if _, err := os.Lstat(path); err != nil {
		t.Fatalf("the socket of the other process: %v", err)
	}
	if err := c.Close(); err != nil {
		t.Fatal(err)
	}
	l, err := listen(t.Context(), "unix://"+path)
	if err != nil {
		t.Fatalf("listen in the place of a socket that nobody serves = %v", err)
	}
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
}

// TestAClientThatLeavesTakesNoAnswerAway: the others of the same second get what was asked for it.
func TestAClientThatLeavesTakesNoAnswerAway(t *testing.T) {
	dir, err := stateDir(servePods(t))
	if err != nil {
		t.Fatal(err)
	}
	s := &source{dir: dir, log: io.Discard}
	gone, leave := context.WithCancel(t.Context())
	leave()
	s.ask(gone)
	if pods, lost := s.ask(t.Context()); len(pods) != 2 || lost != 0 {
		t.Errorf("ask after a client that left = %d pods and %d lost, want 2 and 0", len(pods), lost)
	}
}

func TestWhichRequestsAreAnswered(t *testing.T) {
	url := begin(t, NodeServeCommand(), "--config", servePods(t), "--listen", "127.0.0.1:0")
	for _, c := range []struct {
		method, path, host string
		want               int
	}{
		{"GET", "", "", 200},
		{"HEAD", "metrics", "", 200},
		{"GET", "", "localhost:1234", 200},
		{"GET", "", "[::1]:80", 200},
		{"GET", "", "evil.example", 403},
		{"GET", "metrics", "10.0.0.1", 403},
		{"POST", "", "", 405},
		{"GET", "nothing", "", 404},
		{"GET", "pod/none", "", 404},
		{"GET", "pod/bb22", "", 200},
	} {
		if resp, body := get(t, "", c.method, url+c.path, c.host); resp.StatusCode != c.want {
			t.Errorf("%s /%s of %q = %s, %s, want %d", c.method, c.path, c.host, resp.Status, body, c.want)
		}
	}
}

func TestFurtherRequestsAreTurnedAway(t *testing.T) {
	inside, release := make(chan struct{}), make(chan struct{})
	h := guarded(http.HandlerFunc(func(http.ResponseWriter, *http.Request) {
		inside <- struct{}{}
		<-release
	}))
	done := make(chan struct{})
	for range maxRequests {
		go func() {
			h.ServeHTTP(httptest.NewRecorder(), httptest.NewRequest(http.MethodGet, "http://localhost/", http.NoBody))
			done <- struct{}{}
		}()
		<-inside
	}
	w := httptest.NewRecorder()
	h.ServeHTTP(w, httptest.NewRequest(http.MethodGet, "http://localhost/", http.NoBody))
	if w.Code != http.StatusServiceUnavailable || w.Header().Get("Retry-After") == "" {
		t.Errorf("one more request = %d", w.Code)
	}
	close(release)
	for range maxRequests {
		<-done
	}
}

// A pod speaks for itself only, in clean text of a bounded size.
func TestAPodCannotSpeakForOthers(t *testing.T) {
	var b strings.Builder
	b.WriteString(`coco_pod_info{pod="p1",pod_name="a\n\u001b[2J` + "\x1b]0;t\x07" + `"} 1` + "\n")
	b.WriteString("coco_vm_vcpus{pod=\"p2\"} 9\nup{pod=\"p1\"} 0\nnode_load1 7\ncoco_node_pods 99\n")
	for i := range 3000 {
		b.WriteString("coco_x{i=\"" + strings.Repeat("0", i%7) + "\",n=\"" + string(rune('a'+i%26)) +
			strings.Repeat("y", i/26) + "\"} 1\n")
	}
	s := &source{at: time.Now(), pods: []podMetrics{{Pod: "p1", text: b.String()}}}
	got := s.text(t.Context())
	if n := strings.Count(got, "coco_x{"); n == 0 || n > 1000 {
		t.Errorf("%d samples of one pod", n)
	}
	for _, bad := range []string{"\x1b", "\x07", `pod="p2"`, "\nup{", "node_load1", "\ncoco_node_pods 99"} {
		if strings.Contains(got, bad) {
			t.Errorf("%q is in\n%.500s", bad, got)
		}
	}
}

func TestThePageIsEscapedAndClosed(t *testing.T) {
	evil := strings.ReplaceAll(text, "nginx", `<script>alert(1)</script>`)
	evil = strings.ReplaceAll(evil, `pod_name="web"`, `pod_name="<img src=x onerror=alert(2)>"`)
	config, _ := servePod(t, evil)
	url := begin(t, NodeServeCommand(), "--config", config, "--listen", "127.0.0.1:0")
	for path, wants := range map[string][]string{
		"":       {"1 pods of this node", "&lt;img", "640 MiB", "100 MiB", "15 MiB", "2.50 s"},
		"pod/p1": {"&lt;script&gt;", "&lt;img", "qemu", "policy digest", "<code>none</code>", "7 processes", "1.50 s"},
	} {
		resp, body := get(t, "", http.MethodGet, url+path, "")
		for _, want := range wants {
			if !strings.Contains(body, want) {
				t.Errorf("/%s is without %q:\n%s", path, want, body)
			}
		}
		for _, bad := range []string{"<script", "<img", "onerror=\"", "ZgotmplZ", "src=\"", "http://", "https://"} {
			if strings.Contains(body, bad) {
				t.Errorf("/%s has %q:\n%s", path, bad, body)
			}
		}
		style := regexp.MustCompile(`(?s)<style>(.*)</style>`).FindStringSubmatch(body)
		if style == nil {
			t.Fatalf("/%s has no style", path)
		}
		sum := sha256.Sum256([]byte(style[1]))
		csp := resp.Header.Get("Content-Security-Policy")
		if !strings.HasPrefix(csp, "default-src 'none'; style-src 'sha256-"+base64.StdEncoding.EncodeToString(sum[:])+"';") ||
			strings.Contains(csp, "unsafe") || strings.Contains(csp, "script") {
			t.Errorf("/%s has the policy %q", path, csp)
		}
	}
}

func TestSilentPodsAreCounted(t *testing.T) {
	config := servePods(t)
	dead := filepath.Join(filepath.Dir(config), "s", "cc33")
	if err := os.MkdirAll(dead, 0o700); err != nil {
		t.Fatal(err)
	}
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: filepath.Join(dead, metricsSocket), Net: "unix"})
	if err != nil {
		t.Fatal(err)
	}
	l.SetUnlinkOnClose(false)
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
	out, err := run(t, NodeMetricsCommand(), "--config", config)
	if err != nil || !strings.Contains(out, "coco_node_pods_silent 1\n") {
		t.Errorf("node metrics = %s, %v", out, err)
	}
}
