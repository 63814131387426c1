// Copyright The coco Authors.
// SPDX-License-Identifier: Apache-2.0

package cri

import (
	"bytes"
	"os"
	"path/filepath"
	"time"

	runtime "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// written is the figure by which the kubelet holds a container to its ephemeral-storage limit.
func (p *pod) written(id string) uint64 {
	p.t.Helper()
	r, err := p.node.Runtime.ContainerStats(p.context(), &runtime.ContainerStatsRequest{ContainerId: id})
	if err != nil {
		p.t.Fatalf("ContainerStats: %v", err)
	}
	return r.GetStats().GetWritableLayer().GetUsedBytes().GetValue()
}

// awaitWritten waits for a figure, as the kubelet does: by looking. containerd measures now and then.
func (p *pod) awaitWritten(id string, what string, ok func(uint64) bool) {
	p.t.Helper()
	ctx := p.context()
	for {
		n := p.written(id)
		if ok(n) {
			return
		}
		select {
		case <-ctx.Done():
			p.t.Fatalf("CRI says that the container has written %d bytes, want %s", n, what)
		case <-time.After(200 * time.Millisecond):
		}
	}
}

// countsWhatIsWritten: the writable layer of a container of Kubernetes is a file in its snapshot, where
// containerd counts it for the kubelet. It holds nothing that can be read, and shrinks again.
func (p *pod) countsWhatIsWritten(id string) {
	t := p.t
	t.Helper()
	const mib = 1 << 20
	p.want(id, "yes tweet-tweet-canary | head -c 100000 >/canary; dd if=/dev/zero of=/big bs=1M count=40 2>/dev/null && "+
		"sync && cat /canary /big | wc -c", "42043040")
	p.awaitWritten(id, "40 MiB and little more", func(n uint64) bool { return n >= 40*mib && n < 60*mib })
	disks, err := filepath.Glob(filepath.Join(p.node.Dir,
		"root/io.containerd.snapshotter.v1.overlayfs/snapshots/*/fs/.coco-disk.img"))
	if err != nil || len(disks) != 2 {
		t.Fatalf("disks of writable layers: %q, %v, want 2", disks, err)
	}
	for _, name := range disks {
		if n := countIn(p, name, "tweet-canary"); n > 0 {
			t.Errorf("%s holds what the container wrote, %d times", name, n)
		}
	}
	p.want(id, "rm /big /canary && sync && echo gone", "gone")
	p.awaitWritten(id, "less than 20 MiB", func(n uint64) bool { return n < 20*mib })
}

// countIn counts a text in the parts of a sparse file that are there; holes read as zeros.
func countIn(p *pod, name, text string) (n int) {
	p.t.Helper()
	f, err := os.Open(name)
	if err != nil {
		p.t.Fatal(err)
	}
	defer f.Close()
	for at := int64(0); ; {
		from, err := f.Seek(at, 3) // SEEK_DATA
		if err != nil {
			return n
		}
		to, err := f.Seek(from, 4) // SEEK_HOLE
		if err != nil {
			p.t.Fatal(err)
		}
		data := make([]byte, to-from)
		if _, err := f.ReadAt(data, from); err != nil {
			p.t.Fatal(err)
		}
		n, at = n+bytes.Count(data, []byte(text)), to
	}
}
