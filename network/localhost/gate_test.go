// Copyright The coco Authors.
// SPDX-License-Identifier: Apache-2.0

package localhost

import (
	"context"
	"fmt"
	"io"
	"net"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/coco-shim/coco/internal/testvm"
	"github.com/coco-shim/coco/network/netns"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func TestConnectionsToLocalhostArriveWithTheirPort(t *testing.T) {
	testvm.Need(t, testvm.Root, testvm.Netns)
	ns := filepath.Join(t.TempDir(), "ns")
	if err := netns.New(ns); err != nil {
		t.Fatal(err)
	}
	defer func() {
		if err := netns.Delete(ns); err != nil {
			t.Error(err)
		}
	}()
	in := func(args ...string) string {
		var out []byte
		err := netns.In(ns, func() (err error) {
			out, err = exec.Command(args[0], args[1:]...).CombinedOutput()
			return err
		})
		if err != nil {
			return strings.TrimSpace(string(out)) + " " + err.Error()
		}
		return strings.TrimSpace(string(out))
	}
	if out := in("ip", "link", "set", "lo", "up"); out != "" {
		t.Fatal(out)
	}
	g, err := Open(ns)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	served := make(chan struct{})
	go func() {
		g.Serve(ctx, func(_ context.Context, port uint16) (net.Conn, error) {
			if port == 1 {
				return nil, fmt.Errorf("nobody listens")
			}
			near, far := net.Pipe()
			go func() {
				line := make([]byte, 5)
				_, _ = io.ReadFull(far, line)
				fmt.Fprintf(far, "%s to %d", line, port)
				_ = far.Close()
			}()
			return near, nil
		})
		close(served)
	}()
	for addr, want := range map[string]string{
		"127.0.0.1:8080": "hello to 8080", "127.0.0.2:80": "hello to 80",
		"[::1]:443": "hello to 443",
	} {
		var c net.Conn
		if err := netns.In(ns, func() (err error) {
			// A literal address is dialled on this very thread.
			c, err = (&net.Dialer{Timeout: 5 * time.Second}).Dial("tcp", addr)
			return err
		}); err != nil {
			t.Errorf("%s: %v", addr, err)
			continue
		}
		fmt.Fprint(c, "hello")
		got, err := io.ReadAll(c)
		if string(got) != want {
			t.Errorf("%s = %q, %v, want %q", addr, got, err, want)
		}
		_ = c.Close()
	}
	cancel()
	<-served
	if err := g.Close(); err != nil {
		t.Error(err)
	}
	if err := g.Close(); err != nil {
		t.Errorf("second Close = %v", err)
	}
	// The rule went with its socket: nothing is left that would lead a connection anywhere.
	if err := netns.In(ns, func() error {
		c, err := (&net.Dialer{Timeout: 5 * time.Second}).Dial("tcp", "127.0.0.1:8080")
		if err == nil {
			_ = c.Close()
			return fmt.Errorf("somebody answers")
		}
		return nil
	}); err != nil {
		t.Error(err)
	}
	if _, err := Open(ns + "-not-there"); err == nil {
		t.Error("a gate into a namespace that is not there")
	}
}
