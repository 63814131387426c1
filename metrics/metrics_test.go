// Copyright The coco Authors.
// SPDX-License-Identifier: Apache-2.0

package metrics

import (
	"context"
	"errors"
	"net"
	"net/http"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"go.uber.org/goleak"

	"github.com/coco-shim/coco/internal/worktest"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

const text = `# HELP coco_a_bytes Size of a.
# TYPE coco_a_bytes gauge
coco_a_bytes{pod="p\"1\\",kind="x"} 1.5
coco_a_bytes{pod="p\"1\\",kind="y"} 3e+10
# HELP coco_b_total Number of b.
# TYPE coco_b_total counter
coco_b_total{pod="p\"1\\"} 7
`

func TestText(t *testing.T) {
	s := New("pod", `p"1\`)
	s.Gauge("coco_a_bytes", "Size of a.", 1.5, "kind", "x")
	s.Counter("coco_b_total", "Number of b.", 7)
	s.Gauge("coco_a_bytes", "", 3e10, "kind", "y")
	if diff := cmp.Diff(text, s.String()); diff != "" {
		t.Errorf("text (-want +got):\n%s", diff)
	}
	got, err := Parse(text)
	want := []Sample{
		{"coco_a_bytes", map[string]string{"pod": `p"1\`, "kind": "x"}, 1.5},
		{"coco_a_bytes", map[string]string{"pod": `p"1\`, "kind": "y"}, 3e10},
		{"coco_b_total", map[string]string{"pod": `p"1\`}, 7},
	}
	if diff := cmp.Diff(want, got); diff != "" || err != nil {
		t.Errorf("Parse: %v (-want +got):\n%s", err, diff)
	}
	for _, bad := range []string{"a", "a{", `a{b="c" 1`, "a b", "a 1 2", "1a 1", `a{b="c"`, "{} 1"} {
		if s, err := Parse(bad); err == nil {
			t.Errorf("Parse(%q) = %v", bad, s)
		}
	}
}

// The guest says what it likes; it is taken at its word for what is its own only.
func TestAdopt(t *testing.T) {
	s := New("pod", "p1")
	s.Adopt(`# HELP coco_guest_x X.
# TYPE coco_guest_x counter
coco_guest_x{mode="user",pod="other"} 5
coco_shim_resident_memory_bytes 0
coco_guest_broken{
coco_guest_y 1
coco_guest_y{pod="p2"} 2
# TYPE coco_guest_z evil
coco_guest_z NaN
`, "coco_guest_")
	want := `# HELP coco_guest_x X.
# TYPE coco_guest_x counter
coco_guest_x{pod="p1",mode="user"} 5
# HELP coco_guest_y 
# TYPE coco_guest_y gauge
coco_guest_y{pod="p1"} 1
`
	if diff := cmp.Diff(want, s.String()); diff != "" {
		t.Errorf("adopted (-want +got):\n%s", diff)
	}
}

// Names that a guest or a tenant chose are shown in terminals, and kept by Prometheus.
func TestLabelsAreCleanAndBounded(t *testing.T) {
	long := strings.Repeat("x", 1000)
	s := New("pod", "p1\x1b[2J", "pod_name", "a\nb\xff\u202ec"+long)
	s.Gauge("coco_a", "A.", 1, "name", "\x00\t")
	s.Adopt("# HELP coco_guest_x X\x1b[31m"+long+"\ncoco_guest_x{mode=\"\x1b]0;title\x07\"} 5\n"+
		"coco_guest_"+long+" 1\ncoco_guest_y{"+long+"=\"1\"} 1\ncoco_guest_z{__name__=\"coco_shim_threads\"} 1\n",
		"coco_guest_")
	text := s.String()
	want := []string{
		`pod="p1?[2J"`, `pod_name="a b??cxxx`, `name="? "`, `# HELP coco_guest_x X?[31mxxx`,
		`mode="?]0;title?"`,
	}
	for _, w := range want {
		if !strings.Contains(text, w) {
			t.Errorf("%q is not in\n%.2000s", w, text)
		}
	}
	for _, bad := range []string{"\x1b", "\x00", strings.Repeat("x", mostValue+1), "coco_guest_y", "__name__"} {
		if strings.Contains(text, bad) {
			t.Errorf("%.20q is in\n%.2000s", bad, text)
		}
	}
}

func TestServe(t *testing.T) {
	socket := filepath.Join(t.TempDir(), "m.sock")
	l, err := net.Listen("unix", socket)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	served := make(chan error, 1)
	go func() {
		served <- Serve(ctx, l, func(context.Context) string { return text },
			Page{"/one", func(context.Context) (string, error) { return "page", nil }},
			Page{"/two", func(context.Context) (string, error) { return "", errors.New("it is closed") }})
	}()
	if got, err := GetPage(t.Context(), socket, "/one"); err != nil || got != "page" {
		t.Errorf("GetPage = %q, %v", got, err)
	}
	if got, err := GetPage(t.Context(), socket, "/two"); err == nil || err.Error() != "it is closed" {
		t.Errorf("GetPage = %q, %v, want the page's error", got, err)
	}
	if got, err := GetPage(t.Context(), socket, "/three"); err == nil {
		t.Errorf("GetPage of nothing = %q", got)
	}
	if got, err := Get(t.Context(), socket); err != nil || got != text {
		t.Errorf("Get = %q, %v", got, err)
	}
	dial := func(ctx context.Context, _, _ string) (net.Conn, error) {
		return new(net.Dialer).DialContext(ctx, "unix", socket)
	}
	transport := &http.Transport{DialContext: dial}
	defer transport.CloseIdleConnections()
	for path, want := range map[string]int{"/metrics": 200, "/": 404} {
		resp, err := (&http.Client{Transport: transport}).Get("http://pod" + path)
		if err != nil {
			t.Fatal(err)
		}
		if err := resp.Body.Close(); err != nil || resp.StatusCode != want ||
			!strings.HasPrefix(resp.Header.Get("Content-Type"), "text/plain; version=0.0.4") {
			t.Errorf("GET %s = %v, %v, want %d", path, resp.Status, err, want)
		}
	}
	idle, err := net.Dial("unix", socket) // says nothing
	if err != nil {
		t.Fatal(err)
	}
	defer idle.Close()
	cancel()
	if err := <-served; err != nil {
		t.Errorf("Serve = %v", err)
	}
}

func FuzzAdopt(f *testing.F) {
	f.Add(text)
	f.Fuzz(func(t *testing.T, in string) {
		defer worktest.Bound(t, len(in))()
		s := New("pod", "p")
		s.Adopt(in, "coco_")
		samples, err := Parse(s.String())
		if err != nil {
			t.Fatalf("what was adopted from %q is not well formed: %v", in, err)
		}
		for _, sm := range samples {
			if sm.Labels["pod"] != "p" || !strings.HasPrefix(sm.Name, "coco_") {
				t.Errorf("%q makes %v", in, sm)
			}
		}
	})
}
