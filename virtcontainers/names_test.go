// Copyright The coco Authors.
// SPDX-License-Identifier: Apache-2.0

package virtcontainers

import (
	"bufio"
	"context"
	"errors"
	"io"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"

	specs "github.com/opencontainers/runtime-spec/specs-go"

	"github.com/coco-shim/coco/api/contract"
	"github.com/coco-shim/coco/virtcontainers/boot"
)

// fakeNames asks nobody.
type fakeNames struct {
	w    *world
	open bool
}

func (w *world) names(netns string) (boot.Names, error) {
	if netns == "" {
		return nil, errors.New("no network namespace")
	}
	if err := w.op("ask for names"); err != nil {
		return nil, err
	}
	w.hold("names")
	return &fakeNames{w, true}, nil
}

func (n *fakeNames) Serve(ctx context.Context, c net.Conn) error {
	defer context.AfterFunc(ctx, func() { _ = c.Close() })()
	_, _ = io.Copy(io.Discard, c)
	return c.Close()
}

func (n *fakeNames) Close() error {
	if n.open {
		n.w.free("names")
	}
	n.open = false
	return nil
}

// asks takes the greeting of the stream for names, and asks nothing.
func (a *fakeAgent) asks(c *net.UnixConn) {
	defer c.Close()
	a.mu.Lock()
	a.streams[0] = c // no stream has this number
	a.mu.Unlock()
	line, err := bufio.NewReaderSize(c, 16).ReadString('\n')
	answer := "ok\n"
	if err != nil || line != "resolver 1\n" {
		answer = "no such greeting\n"
	}
	if _, err := io.WriteString(c, answer); err == nil && answer == "ok\n" {
		_, _ = io.Copy(io.Discard, c) // until the host's end
	}
}

// resolvConf is the engine's mount of a resolv.conf that names the resolver of Docker's networks.
func resolvConf(w *world, id string) specs.Mount {
	name := filepath.Join(w.dir, id, "resolv.conf")
	if err := os.MkdirAll(filepath.Dir(name), 0o700); err != nil {
		w.t.Fatal(err)
	}
	if err := os.WriteFile(name, []byte("# Docker\nnameserver\t127.0.0.11 \noptions ndots:0\n"), 0o600); err != nil {
		w.t.Fatal(err)
	}
	return specs.Mount{Type: "bind", Source: name, Destination: "/etc/resolv.conf"}
}

func TestNamesAreAskedForWhereTheEngineAnswersThem(t *testing.T) {
	w := newWorld(t)
	p, _ := start(t, w, w.options("sleep"))
	if w.did("ask for names") {
		t.Error("names are asked for without the engine's resolver")
	}
	if err := p.Shutdown(t.Context()); err != nil {
		t.Error(err)
	}
	w = newWorld(t)
	o := w.options("sleep")
	o.Spec.Mounts = append(o.Spec.Mounts, resolvConf(w, o.ID))
	p, _ = start(t, w, o)
	if !w.did("ask for names") || !w.did("dial 1029") {
		t.Errorf("names are not asked for: %q", w.ops)
	}
	if err := p.Shutdown(t.Context()); err != nil {
		t.Error(err)
	}
	if left := w.left(); len(left) > 0 {
		t.Errorf("left: %q", left)
	}
}

// A guest that takes no answers of the host is not started to fail at each name.
func TestAContainerWhoseNamesNobodyAnswersIsRefused(t *testing.T) {
	w := newWorld(t)
	o := w.options("sleep")
	o.Spec.Mounts = append(o.Spec.Mounts, resolvConf(w, o.ID))
	o.Config.Hypervisor.Platform, o.Config.Hypervisor.CPUModel = "snp", "EPYC-v4"
	o.Config.Hypervisor.Firmware = w.file("OVMF.fd", 0o644)
	_, err := CreatePod(t.Context(), o)
	if err == nil || !strings.Contains(err.Error(), "add "+contract.ParamResolver+" to hypervisor.kernel_params") {
		t.Errorf("CreatePod() = %v", err)
	}
	if w.did("dial 1024") || len(w.left()) > 0 {
		t.Errorf("done: %q, left: %q", w.ops, w.left())
	}
}

// Docker 28 writes resolv.conf between the creation and the start of a container.
func TestNamesOfAResolvConfThatComesLate(t *testing.T) {
	w := newWorld(t)
	o := w.options("sleep")
	m := resolvConf(w, o.ID)
	late, err := os.ReadFile(m.Source)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(m.Source, []byte("nameserver 192.0.2.1\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	o.Spec.Mounts = append(o.Spec.Mounts, m)
	p, _ := start(t, w, o)
	if w.did("ask for names") {
		t.Error("names are asked for before resolv.conf says so")
	}
	if err := os.WriteFile(m.Source, late, 0o600); err != nil {
		t.Fatal(err)
	}
	c, err := p.Container(o.ID)
	if err == nil {
		_, err = c.Init().Start(t.Context())
	}
	if err != nil {
		t.Fatal(err)
	}
	if !w.did("ask for names") || !w.did("dial 1029") {
		t.Errorf("names are not asked for: %q", w.ops)
	}
	copies := 0
	a := w.vm().agent
	a.mu.Lock()
	defer a.mu.Unlock()
	for name, f := range a.files {
		if strings.HasSuffix(name, "resolv.conf") && string(f.GetData()) == string(late) {
			copies++
		}
	}
	if copies != 1 {
		t.Errorf("the guest has the late resolv.conf %d times", copies)
	}
}
