// Copyright The coco Authors.
// SPDX-License-Identifier: Apache-2.0

package workload

import (
	"bytes"
	"context"
	"crypto/sha512"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"strings"
	"sync"
	"testing"
	"time"

	"go.uber.org/goleak"
	"golang.org/x/sys/unix"

	"github.com/coco-shim/coco/api/contract"
	"github.com/coco-shim/coco/attestation/kbs"
	"github.com/coco-shim/coco/attestation/kbs/client"
	"github.com/coco-shim/coco/internal/fdpass"
	"github.com/coco-shim/coco/policy"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// broker has secrets by path, and tokens with one key.
type broker struct {
	secrets map[string]string
	key     *kbs.Key
	err     error
	hold    chan struct{} // if not nil, answers wait for it
	entered chan struct{} // if not nil, gets something from each request

	mu    sync.Mutex
	asked []string
}

func (b *broker) Resource(ctx context.Context, path string) ([]byte, error) {
	b.mu.Lock()
	b.asked = append(b.asked, path)
	b.mu.Unlock()
	if b.hold != nil {
		b.entered <- struct{}{}
		select {
		case <-b.hold:
		case <-ctx.Done():
			return nil, ctx.Err()
		}
	}
	if b.err != nil {
		return nil, b.err
	}
	s, ok := b.secrets[path]
	if !ok {
		return nil, &client.Error{Reason: client.NotFound, Phase: "resource", Cause: errors.New("no such resource")}
	}
	return []byte(s), nil
}

func (b *broker) Token(context.Context) (client.Token, error) {
	return client.Token{JWT: "a.b.c", Key: b.key}, b.err
}

// attester shows the data that it is given.
type attester struct{ tee string }

func (a attester) TEE() string { return a.tee }

func (a attester) Evidence(_ context.Context, data []byte) (json.RawMessage, error) {
	return fmt.Appendf(nil, `{"report_data":"%x"}`, data), nil
}

// pod has containers that may ask for different things, and one that may ask for nothing.
func pod() *policy.Policy {
	all := []string{policy.CallInfo, policy.CallToken, policy.CallEvidence}
	return &policy.Policy{Containers: []policy.Container{
		{Name: "a", Workload: policy.Workload{Resources: []string{"kbs:///r/t/a", "kbs:///r/t/none"}, Calls: all}},
		{Name: "b", Workload: policy.Workload{Resources: []string{"kbs:///r/t/b"}, Calls: []string{policy.CallInfo}}},
		{Name: "open", Workload: policy.Workload{Calls: all, ExportKey: true, Evidence: policy.EvidenceRaw}},
		{Name: "renews", Workload: policy.Workload{Calls: []string{policy.CallRenew}}},
		{Name: "silent"},
	}}
}

func newBroker(t *testing.T) *broker {
	t.Helper()
	key, err := kbs.NewKey(kbs.P256)
	if err != nil {
		t.Fatal(err)
	}
	return &broker{secrets: map[string]string{"r/t/a": "secret of a", "r/t/b": "secret of b"}, key: key}
}

func config(b *broker) Config {
	return Config{
		Policy: pod(), Version: "1.2", Broker: b, Tokens: b, Attester: attester{"snp"},
	}
}

// agent passes connections on to a running API.
type agent struct {
	t  *testing.T
	to *net.UnixConn
}

func start(t *testing.T, cfg Config) agent {
	t.Helper()
	to, from, err := fdpass.Pair("trust", unix.SOCK_SEQPACKET)
	if err != nil {
		t.Fatal(err)
	}
	ended := make(chan error, 1)
	go func() { ended <- New(cfg).Serve(t.Context(), from) }()
	t.Cleanup(func() {
		_ = to.Close()
		if err := <-ended; err != nil {
			t.Errorf("Serve = %v", err)
		}
	})
	return agent{t, to}
}

// dial makes a connection and passes its other end on, as that of a container.
func (a agent) dial(network, container string) net.Conn {
	a.t.Helper()
	at := "127.0.0.1:0"
	if network == "unix" {
		dir, err := os.MkdirTemp("", "w")
		if err != nil {
			a.t.Fatal(err)
		}
		defer os.RemoveAll(dir)
		at = dir + "/s"
	}
	l, err := (&net.ListenConfig{}).Listen(a.t.Context(), network, at)
	if err != nil {
		a.t.Fatal(err)
	}
	defer l.Close()
	c, err := (&net.Dialer{}).DialContext(a.t.Context(), network, l.Addr().String())
	if err != nil {
		a.t.Fatal(err)
	}
	peer, err := l.Accept()
	if err != nil {
		a.t.Fatal(err)
	}
	defer peer.Close()
	f, err := peer.(interface{ File() (*os.File, error) }).File()
	if err != nil {
		a.t.Fatal(err)
	}
	defer f.Close()
	if err := fdpass.Send(a.to, []byte(container), f); err != nil {
		a.t.Fatal(err)
	}
	return c
}

// client is one over the socket of a container, or over the port as a process of the container.
func (a agent) client(network, container string) *http.Client {
	tr := &http.Transport{DialContext: func(context.Context, string, string) (net.Conn, error) {
		return a.dial(network, container), nil
	}}
	a.t.Cleanup(tr.CloseIdleConnections)
	return &http.Client{Transport: tr, Timeout: time.Minute}
}

func ask(t *testing.T, c *http.Client, method, url string, change func(*http.Request)) (int, http.Header, string) {
	t.Helper()
	req, err := http.NewRequestWithContext(t.Context(), method, url, nil)
	if err != nil {
		t.Fatal(err)
	}
	if change != nil {
		change(req)
	}
	resp, err := c.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatal(err)
	}
	return resp.StatusCode, resp.Header, string(body)
}

// Each row is a request over a container's socket, with the status and a part of the body.
func TestAnswers(t *testing.T) {
	a := start(t, config(newBroker(t)))
	clients := map[string]*http.Client{}
	for _, name := range []string{"a", "b", "open"} {
		clients[name] = a.client("unix", name)
	}
	bound := ReportData("a", []byte("hello"))
	for _, tc := range []struct {
		container, path string
		status          int
		kind, body      string
	}{
		{"a", "/cdh/resource/r/t/a", 200, kindBytes, "secret of a"},
		{"b", "/cdh/resource/r/t/b", 200, kindBytes, "secret of b"},
		{"b", "/cdh/resource/r/t/a", 403, "text/plain; charset=utf-8", "does not open this secret to container b"},
		{"a", "/cdh/resource/r/t/b", 403, "", "kbs:///r/t/b"},
		{"a", "/cdh/resource/r/t/none", 500, "", "[not-found]"},
		{"a", "/cdh/resource/r/t/a/", 403, "", ""},
		{"a", "/cdh/resource/r/t/%61", 403, "", ""},
		{"a", "/cdh/resource/r//t/a", 403, "", ""},
		{"a", "/cdh/resource/r/t/../t/a", 403, "", ""},
		{"a", "/cdh/resource/", 403, "", ""},
		{"open", "/cdh/resource/r/t/a", 403, "", ""},
		{"a", "/info", 200, kindJSON, `{"version":"1.2","tee":"snp","feature":"all"}`},
		{"b", "/info", 200, kindJSON, `{"version":"1.2","tee":"snp","feature":"resource"}`},
		{"open", "/info", 200, kindJSON, `{"version":"1.2","tee":"snp","feature":"attestation"}`},
		{"a", "/aa/token?token_type=kbs", 200, kindBytes, `{"token":"a.b.c"}`},
		{"open", "/aa/token?token_type=kbs", 200, kindBytes, "BEGIN PRIVATE KEY"},
		{"a", "/aa/token", 400, "", "token_type is missing"},
		{"a", "/aa/token?token_type=coco_as", 400, "", "known is kbs"},
		{"a", "/aa/token?token_type=kbs&token_type=kbs", 400, "", "2 times"},
		{"a", "/aa/token?token_type=%zz", 400, "", "query"},
		{"b", "/aa/token?token_type=kbs", 404, "", `containers[b].workload.calls with "token"`},
		{"a", "/aa/evidence?runtime_data=hello", 200, kindBytes, hex.EncodeToString(bound[:])},
		{"a", "/aa/evidence?runtime_data=aGVsbG8&encoding=base64", 200, kindBytes, hex.EncodeToString(bound[:])},
		{"open", "/aa/evidence?runtime_data=hello", 200, kindBytes, `"68656c6c6f"`},
		{"open", "/aa/evidence?runtime_data=" + strings.Repeat("x", 65), 400, "", "at most 64"},
		{"a", "/aa/evidence?runtime_data=" + strings.Repeat("x", 1024), 200, "", ""},
		{"a", "/aa/evidence?runtime_data=" + strings.Repeat("x", 1025), 400, "", "at most 1024"},
		{"a", "/aa/evidence", 400, "", "runtime_data is missing"},
		{"a", "/aa/evidence?runtime_data=!&encoding=base64", 400, "", "base64url"},
		{"a", "/aa/evidence?runtime_data=a&encoding=hex", 400, "", "known is base64"},
		{"b", "/aa/evidence?runtime_data=hello", 404, "", "does not open"},
		{"a", "/aa/additional-evidence?runtime_data=x", 404, "", "there is no"},
		{"a", "/aa/aael", 404, "", "there is no"},
		{"a", "/", 404, "", "there is no"},
		{"a", "//info", 404, "", "there is no"},
	} {
		status, header, body := ask(t, clients[tc.container], http.MethodGet, "http://x"+tc.path, nil)
		if status != tc.status || !strings.Contains(body, tc.body) || tc.kind != "" && header.Get("Content-Type") != tc.kind {
			t.Errorf("%s asks for %.60s: %d, %q, %.300q; want %d, %q, %q", tc.container, tc.path, status,
				header.Get("Content-Type"), body, tc.status, tc.kind, tc.body)
		}
		if header.Get("Cache-Control") != "no-store" {
			t.Errorf("%s may be cached", tc.path)
		}
		if strings.Contains(body, "PRIVATE KEY") && tc.container != "open" {
			t.Errorf("container %s has the private key", tc.container)
		}
	}
}

// The policy is asked before the broker.
func TestWhatIsDeniedIsNotAskedFor(t *testing.T) {
	b := newBroker(t)
	a := start(t, config(b))
	ask(t, a.client("unix", "b"), http.MethodGet, "http://x/cdh/resource/r/t/a", nil)
	if len(b.asked) != 0 {
		t.Errorf("the broker was asked for %q", b.asked)
	}
}

func TestMethodsAndBodies(t *testing.T) {
	a := start(t, config(newBroker(t)))
	c := a.client("unix", "a")
	for _, method := range []string{http.MethodPost, http.MethodPut, http.MethodDelete, http.MethodHead, "X"} {
		if status, _, _ := ask(t, c, method, "http://x/info", nil); status != http.StatusMethodNotAllowed {
			t.Errorf("%s /info is answered with %d", method, status)
		}
	}
	if status, _, _ := ask(t, c, http.MethodGet, "http://x/info", func(r *http.Request) {
		r.Body = io.NopCloser(strings.NewReader("body"))
	}); status != http.StatusBadRequest {
		t.Errorf("a body is answered with %d", status)
	}
	k := a.dial("unix", "a")
	defer k.Close()
	go func() { // until it is closed
		_, _ = io.WriteString(k, "GET /info HTTP/1.1\r\nX-Long: "+strings.Repeat("x", 1<<20))
	}()
	_ = k.SetReadDeadline(time.Now().Add(time.Minute))
	head := make([]byte, 12)
	if _, err := io.ReadFull(k, head); string(head) != "HTTP/1.1 431" {
		t.Errorf("a header of 1 MiB is answered with %q, %v", head, err)
	}
}

func TestAPodWithoutABrokerOrEvidence(t *testing.T) {
	b := newBroker(t)
	b.err = errors.New("[config] initdata names no key broker")
	cfg := config(b)
	cfg.Attester = nil
	a := start(t, cfg)
	c := a.client("unix", "a")
	for path, want := range map[string]string{
		"/cdh/resource/r/t/a": "500 [config] initdata", "/aa/token?token_type=kbs": "500 [config] initdata",
		"/aa/evidence?runtime_data=x": "500 [no-evidence]", "/info": `200 {"version":"1.2","feature":"all"}`,
	} {
		status, _, body := ask(t, c, http.MethodGet, "http://x"+path, nil)
		if got := fmt.Sprint(status, " ", body); !strings.HasPrefix(got, want) {
			t.Errorf("%s: %s, want %s", path, got, want)
		}
	}
}

// A container that does not read its answers occupies its own places only.
func TestOneContainerDoesNotShutOutOthers(t *testing.T) {
	b := newBroker(t)
	b.hold, b.entered = make(chan struct{}), make(chan struct{})
	a := start(t, config(b))
	c := a.client("unix", "a")
	var wg sync.WaitGroup
	for range maxBusy {
		wg.Go(func() {
			if status, _, _ := ask(t, c, http.MethodGet, "http://x/cdh/resource/r/t/a", nil); status != 200 {
				t.Errorf("a request in time is answered with %d", status)
			}
		})
	}
	for range maxBusy {
		<-b.entered
	}
	status, header, _ := ask(t, c, http.MethodGet, "http://x/cdh/resource/r/t/a", nil)
	if status != http.StatusTooManyRequests || header.Get("Retry-After") == "" {
		t.Errorf("one request too many is answered with %d", status)
	}
	if status, _, _ := ask(t, a.client("unix", "b"), http.MethodGet, "http://x/info", nil); status != 200 {
		t.Errorf("another container is answered with %d", status)
	}
	close(b.hold)
	wg.Wait()
	for range maxConns {
		defer a.dial("unix", "open").Close()
	}
	last := a.dial("unix", "open")
	defer last.Close()
	_ = last.SetReadDeadline(time.Now().Add(time.Minute))
	if _, err := last.Read(make([]byte, 1)); err == nil || errors.Is(err, os.ErrDeadlineExceeded) {
		t.Errorf("connection %d is open: %v", maxConns+1, err)
	}
	if status, _, _ := ask(t, c, http.MethodGet, "http://x/info", nil); status != 200 {
		t.Errorf("container a is answered with %d", status)
	}
}

// Over the port a connection has the container that the agent has found. A request must be meant for the API.
func TestThePort(t *testing.T) {
	a := start(t, config(newBroker(t)))
	for _, tc := range []struct {
		container, path string
		want            int
	}{
		{"a", "/cdh/resource/r/t/a", 200},
		{"b", "/cdh/resource/r/t/a", 403},
		{"b", "/cdh/resource/r/t/b", 200},
		{"silent", "/info", 403},
		{"unheard", "/info", 403},
		{contract.Stranger, "/info", 403},
		{contract.Stranger, "/cdh/resource/r/t/a", 403},
		{contract.Stranger, "/nothing", 403},
	} {
		status, _, body := ask(t, a.client("tcp4", tc.container), http.MethodGet, "http://127.0.0.1:8006"+tc.path, nil)
		if status != tc.want {
			t.Errorf("%q asks for %s: %d %s, want %d", tc.container, tc.path, status, body, tc.want)
		}
	}
	c := a.client("tcp4", "a")
	for what, change := range map[string]func(*http.Request){
		"a page of another host": func(r *http.Request) { r.Host = "evil.example:8006" },
		"another address":        func(r *http.Request) { r.Host = "10.0.0.1" },
		"a proxy":                func(r *http.Request) { r.Header.Set("X-Forwarded-For", "10.0.0.1") },
		"another proxy":          func(r *http.Request) { r.Header.Set("Forwarded", "for=10.0.0.1") },
	} {
		if status, _, _ := ask(t, c, http.MethodGet, "http://127.0.0.1:8006/info", change); status != 403 {
			t.Errorf("%s is answered with %d", what, status)
		}
	}
	if status, _, _ := ask(t, c, http.MethodGet, "http://localhost/info", nil); status != 200 {
		t.Errorf("localhost is answered with %d", status)
	}
}

// A stranger has its answer and nothing more, and many of them do not shut containers out.
func TestStrangers(t *testing.T) {
	a := start(t, config(newBroker(t)))
	for range 3 * maxUnknown {
		defer a.dial("tcp4", contract.Stranger).Close()
	}
	if status, _, _ := ask(t, a.client("tcp4", "a"), http.MethodGet, "http://127.0.0.1/info", nil); status != 200 {
		t.Errorf("container a is answered with %d", status)
	}
}

// The digest is the one that tools compute: printf 'coco-workload-v1\0a\0hello' | sha384sum.
func TestReportData(t *testing.T) {
	got := ReportData("a", []byte("hello"))
	want := sha512.Sum384([]byte("coco-workload-v1\x00a\x00hello"))
	if !bytes.Equal(got[:48], want[:]) || string(got[48:]) != "coco-workload-v1" {
		t.Errorf("ReportData = %x", got)
	}
	if ReportData("a", []byte("b")) == ReportData("ab", nil) {
		t.Error("two containers can have the same data")
	}
}

// No data of a container makes evidence that a key broker takes for the guest's own client: that ends in zeros, and on
// a TPM its 32 bytes are the beginning of a digest over JSON.
func TestEvidenceIsNotThatOfTheClient(t *testing.T) {
	key, err := kbs.NewKey(kbs.P256)
	if err != nil {
		t.Fatal(err)
	}
	a := kbs.Attestation{Nonce: base64.StdEncoding.EncodeToString(make([]byte, kbs.NonceSize)), Key: key.Public()}
	digest, err := a.Digest()
	if err != nil {
		t.Fatal(err)
	}
	rcar := make([]byte, reportDataSize)
	copy(rcar, digest[:])
	for _, data := range [][]byte{nil, digest[:], rcar, make([]byte, 64)} {
		got := ReportData("a", data)
		if bytes.Equal(got[:tpmDataSize], rcar[:tpmDataSize]) || bytes.Equal(got[48:], rcar[48:]) {
			t.Errorf("data %x gives the evidence of the client", data)
		}
	}
}

// On a TPM raw data of more than a quote takes is refused, not cut.
func TestRawDataOfATPM(t *testing.T) {
	cfg := config(newBroker(t))
	cfg.Attester = attester{"tpm"}
	a := start(t, cfg)
	for n, want := range map[int]int{32: 200, 33: 400} {
		status, _, _ := ask(t, a.client("unix", "open"), http.MethodGet,
			"http://x/aa/evidence?runtime_data="+strings.Repeat("x", n), nil)
		if status != want {
			t.Errorf("%d bytes are answered with %d, want %d", n, status, want)
		}
	}
}
