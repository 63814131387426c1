// Copyright The coco Authors.
// SPDX-License-Identifier: Apache-2.0

package task

import (
	"io"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"

	api "github.com/coco-shim/coco/api/containerd"
	"github.com/coco-shim/coco/api/contract"
	"github.com/coco-shim/coco/shim/shimtest/hostpod"
)

// awaitVM waits for the end of a pod's VM.
func awaitVM(t *testing.T, pod *hostpod.Pod) {
	t.Helper()
	select {
	case <-pod.Done():
	case <-time.After(10 * time.Second):
		t.Fatal("the container has ended and its VM runs on")
	}
}

func TestTheVMOfAPodOfOneEndsWithItAndItsExitIsKept(t *testing.T) {
	f := newFixture(t)
	f.create("c1", "/bin/sleep", "1000")
	f.start("c1", "")
	f.exec("c1", "made", "/bin/true")
	f.kill("c1", "", unix.SIGKILL)
	if code := f.wait("c1", ""); code != killedCode {
		t.Errorf("exit status = %d", code)
	}
	awaitVM(t, f.pod)
	for range 2 { // as often as somebody asks
		if s, code := f.status("c1", ""), f.wait("c1", ""); s != api.Status_STOPPED || code != killedCode {
			t.Errorf("state %v, exit status %d", s, code)
		}
	}
	ctx := t.Context()
	_, err := f.Exec(ctx, &api.ExecProcessRequest{Id: "c1", ExecId: "late", Spec: processSpec(t, "/bin/true")})
	wantClass(t, "exec", err, errdefs.ErrFailedPrecondition)
	_, err = f.Start(ctx, &api.StartRequest{Id: "c1", ExecId: "made"})
	wantClass(t, "start of an exec", err, errdefs.ErrFailedPrecondition)
	_, err = f.Kill(ctx, &api.KillRequest{Id: "c1", Signal: uint32(unix.SIGTERM)})
	wantClass(t, "kill", err, errdefs.ErrNotFound)
	_, err = f.Stats(ctx, &api.StatsRequest{Id: "c1"})
	wantClass(t, "stats", err, errdefs.ErrNotFound)
	_, err = f.Pause(ctx, &api.PauseRequest{Id: "c1"})
	wantClass(t, "pause", err, errdefs.ErrFailedPrecondition)
	_, err = f.ResizePty(ctx, &api.ResizePtyRequest{Id: "c1", Width: 80, Height: 25})
	wantClass(t, "resize", err, errdefs.ErrFailedPrecondition)
	if p, err := f.Pids(ctx, &api.PidsRequest{Id: "c1"}); err != nil || len(p.Processes) != 0 {
		t.Errorf("pids = %v, %v", p, err)
	}
	f.remove("c1", "made")
	if r := f.remove("c1", ""); r.ExitStatus != killedCode {
		t.Errorf("Delete = %v", r)
	}
}

// The guest holds what its container's reader has not taken yet, also when its exit had to be published before.
func TestTheVMOfAPodOfOneWaitsForTheReaderOfItsOutput(t *testing.T) {
	f := newFixture(t)
	fifo := filepath.Join(t.TempDir(), "stdout")
	if err := unix.Mkfifo(fifo, 0o600); err != nil {
		t.Fatal(err)
	}
	reader, err := os.OpenFile(fifo, os.O_RDONLY|unix.O_NONBLOCK, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer reader.Close()
	const size = 1 << 20 // more than the pipes in between hold
	dir := f.bundle(nil, "/bin/sh", "-c", "head -c 1048576 /dev/zero; exit 4")
	if _, err := f.Create(t.Context(), &api.CreateTaskRequest{Id: "c1", Bundle: dir, Stdout: fifo}); err != nil {
		t.Fatal(err)
	}
	f.start("c1", "")
	first := make([]byte, 4096)
	if _, err := io.ReadFull(reader, first); err != nil {
		t.Fatal(err)
	}
	select { // most of it is on its way
	case <-f.pod.Done():
		t.Fatal("the VM ended before its output was read")
	default:
	}
	n, err := io.Copy(io.Discard, reader)
	if got := n + int64(len(first)); err != nil || got != size {
		t.Errorf("%d bytes of output, %v; want %d", got, err, size)
	}
	if code := f.wait("c1", ""); code != 4 {
		t.Errorf("exit status = %d, want 4", code)
	}
	awaitVM(t, f.pod)
	f.remove("c1", "")
}

func TestTheVMOfASandboxOutlivesItsContainers(t *testing.T) {
	f := newFixture(t)
	a := map[string]string{contract.CRIContainerType: "sandbox", contract.CRISandboxID: "s1"}
	if _, err := f.Create(t.Context(), &api.CreateTaskRequest{Id: "s1", Bundle: f.bundle(a)}); err != nil {
		t.Fatal(err)
	}
	f.start("s1", "")
	a[contract.CRIContainerType] = "container"
	for _, id := range []string{"c1", "c2"} { // a restart policy makes the second
		if _, err := f.Create(t.Context(), &api.CreateTaskRequest{Id: id, Bundle: f.bundle(a, "/bin/true")}); err != nil {
			t.Fatalf("create %s: %v", id, err)
		}
		f.start(id, "")
		f.wait(id, "")
		f.remove(id, "")
		select {
		case <-f.pod.Done():
			t.Fatalf("the VM ended with container %s", id)
		default:
		}
	}
}
