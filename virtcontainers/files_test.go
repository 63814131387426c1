// Copyright The coco Authors.
// SPDX-License-Identifier: Apache-2.0

package virtcontainers

import (
	"bufio"
	"bytes"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/coco-shim/coco/configs"
	"github.com/coco-shim/coco/internal/upperwire"
	"github.com/coco-shim/coco/virtcontainers/process"
)

// upperStream is what a guest sends of a container that has written one file.
func upperStream(t *testing.T, name string) []byte {
	t.Helper()
	var b bytes.Buffer
	w := upperwire.NewWriter(&b)
	own := upperwire.Meta{Mode: 0o755, UID: uint32(os.Getuid()), GID: uint32(os.Getgid())}
	for _, e := range []upperwire.Entry{
		{Kind: upperwire.Dir, Meta: own},
		{Kind: upperwire.Dir, Name: name, Meta: own},
		{Kind: upperwire.LeaveDir},
		{Kind: upperwire.LeaveDir},
		{Kind: upperwire.End},
	} {
		if err := w.Write(e); err != nil {
			t.Fatal(err)
		}
	}
	return b.Bytes()
}

// sendsUpper answers a connection for the container's files.
func (a *fakeAgent) sendsUpper(c *net.UnixConn) {
	defer c.Close()
	line, err := bufio.NewReaderSize(c, 16).ReadString('\n')
	answer := a.vm.w.upper
	if answer == nil {
		answer = []byte("there are no files\n")
	} else {
		answer = append([]byte("ok\n"), answer...)
	}
	if err == nil && line == "upper 1\n" && a.fail("files") == nil {
		_, _ = c.Write(answer) // the host has hung up
	}
}

// kept starts a container whose engine has an overlay for it, in a guest that sends the stream.
func kept(t *testing.T, stream []byte, change func(*Options)) (w *world, p *Pod, upper string) {
	t.Helper()
	w = newWorld(t)
	w.upper = stream
	o := w.options("sleep")
	req, disk := w.snapshot("c1")
	o.First.Rootfs, o.First.Bundle = req.Rootfs, o.Bundle
	if change != nil {
		change(&o)
	}
	p, _ = start(t, w, o)
	if _, err := proc(t, p, "c1", "").Start(t.Context()); err != nil {
		t.Fatal(err)
	}
	return w, p, filepath.Dir(disk)
}

func TestTheFilesOfAContainerAreThereWhenItsExitIsKnown(t *testing.T) {
	w, p, upper := kept(t, upperStream(t, "written"), nil)
	pr := proc(t, p, "c1", "")
	if err := pr.Kill(t.Context(), 15, false); err != nil {
		t.Fatal(err)
	}
	if _, err := pr.Wait(t.Context()); err != nil {
		t.Fatal(err)
	}
	if !exists(filepath.Join(upper, "written")) || exists(filepath.Join(upper, "../.coco-upper")) {
		t.Error("the file is not in the engine's directory, or something else is left")
	}
	if !w.did("dial 1030") {
		t.Error("the guest was not asked")
	}
}

func TestAPauseBringsTheFilesOrFails(t *testing.T) {
	_, p, upper := kept(t, upperStream(t, "written"), nil)
	c, err := p.Container("c1")
	if err != nil {
		t.Fatal(err)
	}
	if err := c.Pause(t.Context()); err != nil || !exists(filepath.Join(upper, "written")) {
		t.Errorf("Pause() = %v, and the file is there: %v", err, exists(filepath.Join(upper, "written")))
	}
	if err := c.Resume(t.Context()); err != nil {
		t.Error(err)
	}
	for name, stream := range map[string][]byte{
		"there are no files": nil, "refused": []byte("another version\n"), "broke off": upperStream(t, "x")[:20],
	} {
		_, p, upper := kept(t, stream, nil)
		c, err := p.Container("c1")
		if err != nil {
			t.Fatal(err)
		}
		err = c.Pause(t.Context())
		if err == nil || !strings.Contains(err.Error(), name) || !strings.Contains(err.Error(), "runtime.keep_files") {
			t.Errorf("Pause() = %v, want %q", err, name)
		}
		if st, _ := proc(t, p, "c1", "").State(); st != process.Running {
			t.Errorf("after a pause that failed it is %s", st)
		}
		if names, err := os.ReadDir(upper); err != nil || len(names) > 0 {
			t.Errorf("the engine's directory has %v, %v", names, err)
		}
	}
}

// An exit whose files are lost is an exit: a guest that sends nothing, or nonsense, does not keep its container alive.
func TestAnExitIsPublishedWithoutTheFiles(t *testing.T) {
	_, p, upper := kept(t, []byte("nonsense, and a lot of it"), nil)
	pr := proc(t, p, "c1", "")
	if err := pr.Kill(t.Context(), 15, false); err != nil {
		t.Fatal(err)
	}
	if _, err := pr.Wait(t.Context()); err != nil {
		t.Fatal(err)
	}
	if names, err := os.ReadDir(upper); err != nil || len(names) > 0 {
		t.Errorf("the engine's directory has %v, %v", names, err)
	}
}

func TestWhoseFilesAreNotAskedFor(t *testing.T) {
	for name, change := range map[string]func(*Options){
		"switched off": func(o *Options) { o.Config.Runtime.KeepFiles = configs.DropFiles },
		"a policy":     func(o *Options) { o.Initdata = initdataAnnotation(t, initdataText) },
		"no overlay":   func(o *Options) { o.First.Rootfs = nil },
		"a bind mount": func(o *Options) {
			o.First.Rootfs = []Mount{{Type: "bind", Source: t.TempDir(), Options: []string{"rw"}}}
		},
		"only for looks": func(o *Options) { o.First.Rootfs[0].Options = []string{"lowerdir=/a:/b"} },
	} {
		w, p, _ := kept(t, upperStream(t, "written"), change)
		pr := proc(t, p, "c1", "")
		if err := pr.Kill(t.Context(), 15, false); err != nil {
			t.Fatal(err)
		}
		if _, err := pr.Wait(t.Context()); err != nil {
			t.Fatal(err)
		}
		if w.did("dial 1030") {
			t.Errorf("%s: the guest was asked for files", name)
		}
	}
}
