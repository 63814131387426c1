// Copyright The coco Authors.
// SPDX-License-Identifier: Apache-2.0

package stdio

import (
	"bytes"
	"context"
	"crypto/rand"
	"errors"
	"io"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/containerd/errdefs"
	"github.com/google/go-cmp/cmp"
	"go.uber.org/goleak"
	"golang.org/x/sys/unix"

	"github.com/coco-shim/coco/internal/worktest"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func fifo(t *testing.T, name string) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), name)
	if err := unix.Mkfifo(path, 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

func open(t *testing.T, cfg Config) *Relay {
	t.Helper()
	cfg.ID, cfg.Namespace, cfg.Log = "c1", "ns", slog.New(slog.DiscardHandler)
	r, err := Open(t.Context(), cfg)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = r.Close() })
	return r
}

func pipe(t *testing.T) (r, w *os.File) {
	t.Helper()
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = r.Close(); _ = w.Close() })
	return r, w
}

// TestBinaryDataBothWays sends 64 MiB through a process that copies its input to its output.
func TestBinaryDataBothWays(t *testing.T) {
	in, out := fifo(t, "in"), fifo(t, "out")
	data := make([]byte, 64<<20)
	_, _ = rand.Read(data)
	reader, err := os.OpenFile(out, os.O_RDONLY|unix.O_NONBLOCK, 0) // clients open before they create
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = reader.Close() }()
	r := open(t, Config{Stdin: in, Stdout: out})
	inR, inW := pipe(t)
	outR, outW := pipe(t)
	r.Start(Streams{Stdin: inW, Stdout: outR})
	go func() { // the process
		_, _ = io.Copy(outW, inR)
		_ = outW.Close()
	}()
	go func() { // the client
		w, err := os.OpenFile(in, os.O_WRONLY, 0)
		if err != nil {
			return
		}
		_, _ = w.Write(data)
		_ = r.CloseStdin() // as ctr does: before it closes
		_ = w.Close()
	}()
	got, err := io.ReadAll(reader)
	if err != nil || !bytes.Equal(got, data) {
		t.Fatalf("%d bytes of %d came back, equal = %v, %v", len(got), len(data), bytes.Equal(got, data), err)
	}
	r.Drain(t.Context())
	if err := r.Close(); err != nil {
		t.Error(err)
	}
}

func TestAnAbsentReaderCostsItsOutputAndNotTheExit(t *testing.T) {
	out := fifo(t, "out")
	r := open(t, Config{Stdout: out})
	outR, outW := pipe(t)
	r.Start(Streams{Stdout: outR})
	wrote := make(chan struct{})
	go func() { // more than pipe, FIFO and buffers hold
		defer close(wrote)
		_, _ = outW.Write(make([]byte, 1<<20))
		_ = outW.Close()
	}()
	select {
	case <-wrote:
		t.Fatal("output was lost while the process lives: it must wait for a reader that may come")
	case <-time.After(50 * time.Millisecond):
	}
	start := time.Now()
	r.Drain(t.Context())
	if d := time.Since(start); d > idleGrace {
		t.Errorf("Drain took %v without a reader", d)
	}
	<-wrote
}

// withReader starts a relay whose stdout has a reader, and returns the process's end of it too.
func withReader(t *testing.T) (r *Relay, reader, stdout *os.File) {
	t.Helper()
	out := fifo(t, "out")
	reader, err := os.OpenFile(out, os.O_RDONLY|unix.O_NONBLOCK, 0)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = reader.Close() })
	r = open(t, Config{Stdout: out})
	from, stdout := pipe(t)
	r.Start(Streams{Stdout: from})
	return r, reader, stdout
}

func TestASlowReaderGetsEverything(t *testing.T) {
	r, reader, outW := withReader(t)
	const size = 1 << 20
	go func() {
		_, _ = outW.Write(make([]byte, size))
		_ = outW.Close()
	}()
	drained := make(chan struct{})
	go func() { r.Drain(context.WithoutCancel(t.Context())); close(drained) }()
	total, buf := 0, make([]byte, 32<<10)
	for {
		n, err := reader.Read(buf)
		total += n
		if err != nil {
			break
		}
		time.Sleep(time.Millisecond) // slow is the point
	}
	<-drained
	if total != size {
		t.Errorf("%d bytes of %d", total, size)
	}
}

// A client that is busy with something else, or whose machine was, for longer than an idle output may stand still.
func TestAReaderThatPausesGetsEverything(t *testing.T) {
	r, reader, outW := withReader(t)
	const size = 160 << 10 // FIFO and pipe hold it: the process ends before anything is read
	if _, err := outW.Write(make([]byte, size)); err != nil {
		t.Fatal(err)
	}
	_ = outW.Close()
	drained := make(chan struct{})
	go func() { // the end of the process, and its deletion
		r.Drain(context.WithoutCancel(t.Context()))
		_ = r.Close()
		close(drained)
	}()
	time.Sleep(idleGrace + idleGrace/2) // the pause is the point
	got, err := io.ReadAll(reader)
	<-drained
	if err != nil || len(got) != size {
		t.Errorf("%d bytes of %d, %v", len(got), size, err)
	}
}

func TestAGrandchildThatHoldsTheOutputDoesNotHoldTheExit(t *testing.T) {
	r := open(t, Config{Stdout: "/dev/null"})
	outR, _ := pipe(t) // nobody closes the other end
	r.Start(Streams{Stdout: outR})
	start := time.Now()
	r.Drain(t.Context())
	if d := time.Since(start); d < idleGrace || d > 3*idleGrace {
		t.Errorf("Drain took %v, want about %v", d, idleGrace)
	}
	if err := r.Close(); err != nil {
		t.Error(err)
	}
}

func TestCloseEndsARelayThatIsStuckEverywhere(t *testing.T) {
	in, out := fifo(t, "in"), fifo(t, "out")
	r := open(t, Config{Stdin: in, Stdout: out})
	_, inW := pipe(t)
	outR, outW := pipe(t)
	r.Start(Streams{Stdin: inW, Stdout: outR})
	if _, err := outW.Write(make([]byte, 60<<10)); err != nil {
		t.Fatal(err)
	}
	for range 2 {
		if err := r.Close(); err != nil {
			t.Error(err)
		}
	}
}

func TestInputSurvivesAClientThatLeaves(t *testing.T) {
	in := fifo(t, "in")
	r := open(t, Config{Stdin: in})
	inR, inW := pipe(t)
	r.Start(Streams{Stdin: inW})
	buf := make([]byte, 8)
	for _, s := range []string{"one", "two"} {
		if err := os.WriteFile(in, []byte(s), 0); err != nil { // opens, writes, leaves
			t.Fatal(err)
		}
		if n, err := inR.Read(buf); err != nil || string(buf[:n]) != s {
			t.Fatalf("input = %q, %v, want %q", buf[:n], err, s)
		}
	}
	if err := r.CloseStdin(); err != nil {
		t.Fatal(err)
	}
	if n, err := inR.Read(buf); !errors.Is(err, io.EOF) {
		t.Errorf("after CloseStdin: %q, %v, want the end", buf[:n], err)
	}
}

func TestFilesAreMadeAndAppendedTo(t *testing.T) {
	path := filepath.Join(t.TempDir(), "not/there/yet/log") // runc's shim makes the directories as well
	for _, s := range []string{"a", "b"} {
		r := open(t, Config{Stdout: "file://" + path, Stderr: "file://" + path})
		outR, outW := pipe(t)
		errR, errW := pipe(t)
		r.Start(Streams{Stdout: outR, Stderr: errR})
		_, _ = outW.WriteString(s + "\n")
		_ = outW.Close()
		_, _ = errW.WriteString(s + "!\n")
		_ = errW.Close()
		r.Drain(t.Context())
		if err := r.Close(); err != nil {
			t.Error(err)
		}
	}
	got, err := os.ReadFile(path)
	if err != nil || len(got) != 10 || strings.Count(string(got), "!") != 2 {
		t.Errorf("log = %q, %v", got, err)
	}
}

// Only of a file is it known that no reader tells the two apart.
func TestOneFile(t *testing.T) {
	for _, tt := range []struct {
		cfg  Config
		want bool
	}{
		{Config{Stdout: "file:///log", Stderr: "file:///log"}, true},
		{Config{Stdout: "file:///log", Stderr: "file:///other"}, false},
		{Config{Stdout: "file:///log", Stderr: "file:///log", Terminal: true}, false},
		{Config{Stdout: "file:///log"}, false},
		{Config{Stdout: "/fifo", Stderr: "/fifo"}, false},
		{Config{Stdout: "binary:///log", Stderr: "binary:///log"}, false},
		{Config{}, false},
	} {
		if got := tt.cfg.OneFile(); got != tt.want {
			t.Errorf("%+v: OneFile() = %v, want %v", tt.cfg, got, tt.want)
		}
	}
	path := filepath.Join(t.TempDir(), "log")
	r := open(t, Config{Stdout: "file://" + path, Stderr: "file://" + path})
	outR, outW := pipe(t)
	r.Start(Streams{Stdout: outR}) // what comes of both
	_, _ = outW.WriteString("both\n")
	_ = outW.Close()
	r.Drain(t.Context())
	if err := r.Close(); err != nil {
		t.Error(err)
	}
	if got, err := os.ReadFile(path); err != nil || string(got) != "both\n" {
		t.Errorf("log = %q, %v", got, err)
	}
}

func TestABinaryLoggerGetsStreamsAndNames(t *testing.T) {
	dir := t.TempDir()
	script, out := filepath.Join(dir, "logger"), filepath.Join(dir, "out")
	body := "#!/bin/sh\nexec 5>&-\n{ echo \"$1 $2 $3 $CONTAINER_ID $CONTAINER_NAMESPACE\"; cat <&3; cat <&4; } >" + out +
		"\n"
	if err := os.WriteFile(script, []byte(body), 0o700); err != nil {
		t.Fatal(err)
	}
	uri := "binary://" + script + "?b=1&a"
	r := open(t, Config{Stdout: uri, Stderr: uri})
	outR, outW := pipe(t)
	errR, errW := pipe(t)
	r.Start(Streams{Stdout: outR, Stderr: errR})
	_, _ = outW.WriteString("out\n")
	_, _ = errW.WriteString("err\n")
	_ = outW.Close()
	_ = errW.Close()
	r.Drain(t.Context())
	if err := r.Close(); err != nil {
		t.Fatal(err)
	}
	got, err := os.ReadFile(out)
	if want := "b 1 a c1 ns\nout\nerr\n"; err != nil || string(got) != want {
		t.Errorf("logger wrote %q, %v, want %q", got, err, want)
	}
}

func TestALoggerThatFailsSaysWhy(t *testing.T) {
	script := filepath.Join(t.TempDir(), "logger")
	if err := os.WriteFile(script, []byte("#!/bin/sh\necho no space >&2; exit 3\n"), 0o700); err != nil {
		t.Fatal(err)
	}
	cfg := Config{ID: "c1", Stdout: "binary://" + script, Log: slog.New(slog.DiscardHandler)}
	r, err := Open(t.Context(), cfg)
	if err == nil { // it closes its descriptors by ending, so it may have seemed ready
		err = r.Close()
	}
	if err == nil || !strings.Contains(err.Error(), "no space") {
		t.Errorf("logger's failure = %v, want its words", err)
	}
	if _, err := Open(t.Context(), Config{ID: "c1", Stdout: "binary:///no/such", Log: cfg.Log}); err == nil {
		t.Error("a logger that does not exist was started")
	}
}

func TestParseTarget(t *testing.T) {
	for _, tc := range []struct {
		name, in string
		want     target
		wantErr  error
	}{
		{"a path", "/run/x", target{kind: kindPath, path: "/run/x"}, nil},
		{"fifo", "fifo:///run/x", target{kind: kindPath, path: "/run/x"}, nil},
		{"file", "file:///var/log/a%20b", target{kind: kindFile, path: "/var/log/a b"}, nil},
		{
			"binary keeps the order", "binary:///b?z=1&a=2&flag",
			target{kind: kindBinary, path: "/b", args: []string{"z", "1", "a", "2", "flag"}},
			nil,
		},
		{"escaped arguments", "binary:///b?a=%2Fx+y", target{kind: kindBinary, path: "/b", args: []string{"a", "/x y"}}, nil},
		{"relative path", "run/x", target{}, errdefs.ErrInvalidArgument},
		{"host instead of path", "file://var/log", target{}, errdefs.ErrInvalidArgument},
		{"unknown scheme before a host", "foo://x", target{}, errdefs.ErrInvalidArgument},
		{"unknown scheme", "npipe:///x", target{}, errdefs.ErrInvalidArgument},
		{"broken escape", "binary:///b?a=%zz", target{}, errdefs.ErrInvalidArgument},
		{"zero byte", "file:///a%00b", target{}, errdefs.ErrInvalidArgument},
	} {
		t.Run(tc.name, func(t *testing.T) {
			got, err := parseTarget(tc.in)
			if !errors.Is(err, tc.wantErr) {
				t.Fatalf("parseTarget(%q) error = %v, want %v", tc.in, err, tc.wantErr)
			}
			if diff := cmp.Diff(tc.want, got, cmp.AllowUnexported(target{})); diff != "" {
				t.Errorf("parseTarget(%q) (-want +got):\n%s", tc.in, diff)
			}
		})
	}
}

func FuzzParseTarget(f *testing.F) {
	for _, s := range []string{"/x", "fifo:///x", "file:///x", "binary:///x?a=b&c", "binary://h/x", "::"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		defer worktest.Bound(t, len(s))()
		got, err := parseTarget(s)
		if err != nil {
			return
		}
		if !filepath.IsAbs(got.path) || strings.ContainsRune(got.path, 0) {
			t.Errorf("parseTarget(%q) = %+v: no usable path", s, got)
		}
	})
}
