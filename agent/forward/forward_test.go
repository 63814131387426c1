// Copyright The coco Authors.
// SPDX-License-Identifier: Apache-2.0

package forward

import (
	"bufio"
	"fmt"
	"io"
	"net"
	"strings"
	"testing"
	"time"

	"go.uber.org/goleak"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func listen(t *testing.T, addr string) *net.TCPListener {
	t.Helper()
	l, err := net.Listen("tcp", addr)
	if err != nil {
		t.Skipf("cannot listen on %s: %v", addr, err)
	}
	return l.(*net.TCPListener)
}

func TestForward(t *testing.T) {
	s, l := New(func(uint32) error { return nil }), listen(t, "127.0.0.1:0")
	served := make(chan error, 1)
	go func() { served <- s.Serve(l) }()
	service := listen(t, "127.0.0.1:0")
	defer service.Close()
	go func() {
		for {
			c, err := service.Accept()
			if err != nil {
				return
			}
			data, _ := io.ReadAll(c) // until the client's end: half-closing must pass through
			fmt.Fprintf(c, "got %q", data)
			_ = c.Close()
		}
	}()
	port := service.Addr().(*net.TCPAddr).Port
	ask := func(first string) string {
		t.Helper()
		c, err := net.Dial("tcp", l.Addr().String())
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		_ = c.SetDeadline(time.Now().Add(30 * time.Second))
		fmt.Fprintf(c, "%shello", first)
		_ = c.(*net.TCPConn).CloseWrite()
		out, err := io.ReadAll(bufio.NewReader(c))
		if err != nil && len(out) == 0 {
			return ""
		}
		return string(out)
	}
	if got := ask(fmt.Sprintf("%d\n", port)); got != "ok\ngot \"hello\"" {
		t.Errorf("forwarded = %q", got)
	}
	closed := listen(t, "127.0.0.1:0")
	free := closed.Addr().(*net.TCPAddr).Port
	_ = closed.Close()
	if got := ask(fmt.Sprintf("%d\n", free)); !strings.Contains(got, "refused") {
		t.Errorf("a port where nobody listens = %q", got)
	}
	for _, bad := range []string{"\n", "0\n", "65536\n", "localhost:22\n", "22 udp\n", strings.Repeat("1", 100)} {
		if got := ask(bad); !strings.HasPrefix(got, "greeting ") || !strings.HasSuffix(got, "\n") {
			t.Errorf("%q was answered with %q", bad, got)
		}
	}
	s.Close()
	if err := <-served; err != nil {
		t.Errorf("Serve = %v", err)
	}
}
