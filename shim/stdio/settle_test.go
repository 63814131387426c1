// Copyright The coco Authors.
// SPDX-License-Identifier: Apache-2.0

package stdio

import (
	"io"
	"log/slog"
	"os"
	"path/filepath"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// startWithClient opens a relay on a new stdin FIFO, lets a client do its part, and starts the process.
// It returns the process's end of stdin.
func startWithClient(t *testing.T, client func(w *os.File)) (stdin io.Reader, path string) {
	t.Helper()
	path = filepath.Join(t.TempDir(), "stdin")
	if err := unix.Mkfifo(path, 0o600); err != nil {
		t.Fatal(err)
	}
	r, err := Open(t.Context(), Config{ID: "c", Stdin: path, Log: slog.New(slog.DiscardHandler)})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = r.Close() })
	w, err := os.OpenFile(path, os.O_WRONLY, 0)
	if err != nil {
		t.Fatal(err)
	}
	client(w)
	pr, pw, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = pr.Close() })
	r.Start(Streams{Stdin: pw})
	r.ProcessStarts()
	return pr, path
}

func TestClientThatWroteAndLeftBeforeTheStartEndsTheInput(t *testing.T) {
	stdin, _ := startWithClient(t, func(w *os.File) {
		_, _ = w.WriteString("all there is")
		_ = w.Close()
	})
	got, err := io.ReadAll(stdin)
	if err != nil || string(got) != "all there is" {
		t.Errorf("the process read %q, %v", got, err)
	}
}

func TestClientThatIsStillThereKeepsTheInputOpen(t *testing.T) {
	var client *os.File
	stdin, path := startWithClient(t, func(w *os.File) {
		_, _ = w.WriteString("a")
		client = w
	})
	defer client.Close()
	buf := make([]byte, 8)
	if n, err := stdin.Read(buf); err != nil || string(buf[:n]) != "a" {
		t.Fatalf("read %q, %v", buf[:n], err)
	}
	_ = client.Close() // leaves after the start: another client may attach
	next, err := os.OpenFile(path, os.O_WRONLY, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer next.Close()
	_, _ = next.WriteString("b")
	if n, err := stdin.Read(buf); err != nil || string(buf[:n]) != "b" {
		t.Errorf("read %q, %v", buf[:n], err)
	}
}

func TestClientThatWroteNothingMayComeBack(t *testing.T) {
	stdin, path := startWithClient(t, func(w *os.File) { _ = w.Close() })
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		_, _ = stdin.Read(make([]byte, 1))
	}()
	select {
	case <-ended:
		t.Fatal("the input ended")
	case <-time.After(100 * time.Millisecond):
	}
	next, err := os.OpenFile(path, os.O_WRONLY, 0)
	if err != nil {
		t.Fatal(err)
	}
	_, _ = next.WriteString("x")
	_ = next.Close()
	<-ended
}
