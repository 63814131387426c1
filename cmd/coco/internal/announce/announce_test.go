// Copyright The coco Authors.
// SPDX-License-Identifier: Apache-2.0

package announce

import (
	"encoding/json"
	"encoding/pem"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"
)

// fakeAPI serves one node over TLS. after is how many looks pass before the handler is there.
type fakeAPI struct {
	mu       sync.Mutex
	after    int
	ready    string
	handler  string
	taints   string
	status   int // of every answer, if not 0
	conflict int // patches that conflict
	patches  []string
}

func (f *fakeAPI) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.status != 0 || r.URL.Path != "/api/v1/nodes/n1" || r.Header.Get("Authorization") != "Bearer abc" {
		w.WriteHeader(max(f.status, http.StatusBadRequest))
		_, _ = io.WriteString(w, `{"message": "no\u001b way"}`)
		return
	}
	if r.Method == http.MethodPatch {
		text, _ := io.ReadAll(r.Body)
		if f.conflict > 0 && strings.Contains(r.Header.Get("Content-Type"), "json-patch") {
			f.conflict--
			w.WriteHeader(http.StatusUnprocessableEntity)
			return
		}
		f.patches = append(f.patches, r.Header.Get("Content-Type")+" "+string(text))
		_, _ = io.WriteString(w, "{}")
		return
	}
	handlers := "[]"
	if f.after--; f.after < 0 {
		handlers = `[{"name": ""}, {"name": "runc"}, {"name": "` + f.handler + `"}]`
	}
	_, _ = io.WriteString(w, `{"spec": {"taints": `+f.taints+`}, "status": {"conditions": [{"type": "Ready", "status": "`+
		f.ready+`"}], "runtimeHandlers": `+handlers+`}}`)
}

// begin serves f and returns the cluster as a pod sees it.
func begin(t *testing.T, f *fakeAPI) *cluster {
	t.Helper()
	server := httptest.NewTLSServer(f)
	t.Cleanup(server.Close)
	dir := t.TempDir()
	ca := pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: server.Certificate().Raw})
	for name, text := range map[string]string{"ca.crt": string(ca), "token": "abc\n"} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	u, err := url.Parse(server.URL)
	if err != nil {
		t.Fatal(err)
	}
	host, port, err := net.SplitHostPort(u.Host)
	if err != nil {
		t.Fatal(err)
	}
	c, err := inCluster(dir, host, port)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(c.client.CloseIdleConnections)
	c.pause = time.Millisecond
	return c
}

var wanted = options{
	node: "n1", taint: "coco.dev/installing", handlers: []string{"coco"},
	labels: map[string]string{"coco.dev/runtime": "true"}, timeout: 10 * time.Second,
}

func TestAnnounce(t *testing.T) {
	f := &fakeAPI{
		after: 3, ready: "True", handler: "coco", conflict: 2,
		taints: `[{"key":"a","effect":"NoSchedule"},{"key":"coco.dev/installing","effect":"NoSchedule","x":1}]`,
	}
	var log strings.Builder
	if err := begin(t, f).announce(t.Context(), wanted, &log); err != nil {
		t.Fatal(err)
	}
	if len(f.patches) != 2 ||
		f.patches[0] != `application/merge-patch+json {"metadata":{"labels":{"coco.dev/runtime":"true"}}}` ||
		!strings.HasPrefix(f.patches[1], "application/json-patch+json ") {
		t.Fatalf("patches are %q", f.patches)
	}
	var ops []struct {
		Op, Path string
		Value    []map[string]any
	}
	if err := json.Unmarshal([]byte(strings.SplitN(f.patches[1], " ", 2)[1]), &ops); err != nil {
		t.Fatal(err)
	}
	if len(ops) != 2 || ops[0].Op != "test" || len(ops[0].Value) != 2 || ops[0].Value[1]["x"] != 1.0 ||
		ops[1].Op != "replace" || len(ops[1].Value) != 1 || ops[1].Value[0]["key"] != "a" {
		t.Errorf("operations are %+v", ops)
	}
	if !strings.Contains(log.String(), "is empty: containerd") || !strings.Contains(log.String(), "has the labels") {
		t.Errorf("log is %s", log.String())
	}
}

func TestANodeWithoutTheTaintIsLeft(t *testing.T) {
	f := &fakeAPI{ready: "True", handler: "coco", taints: "null"}
	if err := begin(t, f).announce(t.Context(), wanted, io.Discard); err != nil || len(f.patches) != 1 {
		t.Errorf("announce = %v, patches %q", err, f.patches)
	}
}

// Nothing is changed before the handler is there.
func TestNoLabelWithoutTheHandler(t *testing.T) {
	for want, f := range map[string]*fakeAPI{
		"not ready":                         {ready: "False", handler: "coco"},
		"is empty: containerd reports":      {ready: "True", after: 1 << 30},
		"has , runc, kata and not coco":     {ready: "True", handler: "kata"},
		"answers 500: no? way":              {status: http.StatusInternalServerError},
		"403: no? way; the service account": {status: http.StatusForbidden},
		"answers 404":                       {status: http.StatusNotFound},
	} {
		f.taints = "[]"
		o := wanted
		o.timeout = 200 * time.Millisecond
		err := begin(t, f).announce(t.Context(), o, io.Discard)
		if err == nil || !strings.Contains(err.Error(), want) || len(f.patches) > 0 {
			t.Errorf("announce = %v, patches %q, want %q", err, f.patches, want)
		}
	}
}

// TestAServerThatDoesNotAnswerIsNamed: the wait ends during the first look.
func TestAServerThatDoesNotAnswerIsNamed(t *testing.T) {
	server := httptest.NewServer(http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) { <-r.Context().Done() }))
	defer server.Close()
	token := filepath.Join(t.TempDir(), "token")
	if err := os.WriteFile(token, []byte("abc"), 0o600); err != nil {
		t.Fatal(err)
	}
	c := &cluster{base: server.URL, token: token, client: server.Client(), pause: time.Hour}
	o := options{node: "n1", handlers: []string{"coco"}, timeout: 100 * time.Millisecond}
	if err := c.announce(t.Context(), o, io.Discard); err == nil || !strings.Contains(err.Error(), "ask the API server") {
		t.Errorf("announce = %v, want an error that names the API server", err)
	}
}

func TestFlagsThatAreRefused(t *testing.T) {
	for want, args := range map[string][]string{
		"no name of a node":      {"--node", "a/../b", "--label", "a=b"},
		"without a reason":       {"--node", "n", "--label", "a=b", "--handler", ""},
		"nothing to do":          {"--node", "n"},
		"not positive":           {"--node", "n", "--label", "a=b", "--timeout", "0"},
		"this command runs in a": {"--node", "n", "--label", "a=b"},
	} {
		t.Setenv("KUBERNETES_SERVICE_HOST", "")
		cmd := Command()
		cmd.SilenceErrors, cmd.SilenceUsage = true, true
		cmd.SetArgs(args)
		if err := cmd.ExecuteContext(t.Context()); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("announce %q = %v, want %q", args, err, want)
		}
	}
}
