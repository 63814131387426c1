// Copyright The coco Authors.
// SPDX-License-Identifier: Apache-2.0

package copies

import (
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"slices"
	"strings"
	"testing"

	pb "github.com/coco-shim/coco/api/agent"
	"github.com/coco-shim/coco/api/contract"
	"github.com/coco-shim/coco/plan/request"
	"github.com/coco-shim/coco/policy"
)

const text = "the owner's text"

func digest(s string) string {
	sum := sha256.Sum256([]byte(s))
	return hex.EncodeToString(sum[:])
}

// guest has copied files and at most one container. web mounts /etc/app (a copy of its own), and the volume v.
type guest struct {
	*testing.T
	*Copies
	web  Holder
	made []Holder
	own  string // the place of /etc/app
}

const volume = contract.FilesDir + "/sandbox-v"

// newGuest has the rules of the container's own copy and of the volume.
func newGuest(t *testing.T, own, shared *policy.Content) *guest {
	t.Helper()
	p := &policy.Policy{
		Containers: []policy.Container{{Name: "web", Mounts: []policy.Mount{
			{Destination: "/proc", Source: policy.Source{Is: new("proc")}},
			{Destination: "/etc/app", Source: policy.Source{Copy: own}},
			{Destination: "/v", Source: policy.Source{Volume: &policy.Use{Name: "v"}}},
		}}},
		Volumes: []policy.Volume{
			{Name: "m", Kind: policy.VolumeMemory}, {Name: "v", Kind: policy.VolumeCopy, Content: shared},
		},
	}
	web := Holder{ID: "id", Of: &p.Containers[0], Places: map[string]string{"v": volume, "m": contract.MemoryDir + "/m"}}
	return &guest{t, New(p), web, nil, request.GuestCopy("id", "/etc/app")}
}

// exact allows the files, each with the owner's text.
func exact(names ...string) *policy.Content {
	c := &policy.Content{Rule: policy.ContentDigest}
	for _, n := range names {
		c.Files = append(c.Files, policy.File{Path: n, SHA256: digest(text)})
	}
	return c
}

func file(path, text string) *pb.CopyFileRequest {
	return &pb.CopyFileRequest{Path: path, FileMode: regular | 0o644, FileSize: int64(len(text)), Data: []byte(text)}
}

func link(path, target string) *pb.CopyFileRequest {
	return &pb.CopyFileRequest{Path: path, FileMode: symlink | 0o777, Data: []byte(target)}
}

func gone(path string) *pb.CopyFileRequest { return &pb.CopyFileRequest{Path: path, Remove: true} }

// send copies files, and returns the first denial without its code.
func (g *guest) send(list ...*pb.CopyFileRequest) string {
	for _, r := range list {
		commit, d := g.Check(r, slices.Values(g.made))
		if d != nil {
			_, said, _ := strings.Cut(d.Error(), "] ")
			return said
		}
		if commit != nil {
			commit()
		}
	}
	return ""
}

// create has the container made.
func (g *guest) create() string {
	if d := g.Admit(g.web); d != nil {
		_, said, _ := strings.Cut(d.Error(), "] ")
		return said
	}
	g.Own(g.web)
	g.made = append(g.made, g.web)
	return ""
}

func (g *guest) want(what, got, want string) {
	g.Helper()
	if !strings.HasPrefix(got, want) || (got == "") != (want == "") {
		g.Errorf("%s:\ngot  %s\nwant %s", what, got, want)
	}
}

// TestPlacesOfFiles: only places of mounts and volumes take files, in one spelling.
func TestPlacesOfFiles(t *testing.T) {
	unpinned := &policy.Content{Rule: policy.ContentUnpinned}
	g := newGuest(t, unpinned, unpinned)
	const below = "path: expected a path below "
	const place = "path: expected a place for a mount or volume of the policy, got "
	g.want("own", g.send(file(g.own, "x"), file(g.own+"/a/b", "x")), "")
	g.want("shared", g.send(file(volume+"/a", "x")), "")
	raw := file("", "x")
	raw.RawPath = []byte(volume + "/a")
	g.want("by bytes", g.send(raw), "")
	raw.Path, raw.RawPath = volume+"/a", []byte("/etc/passwd")
	g.want("bytes count", g.send(raw), below)
	for _, p := range []string{"", "/etc/a", contract.FilesDir, volume + "/", volume + "/a/../b", volume + "//a"} {
		g.want(p, g.send(file(p, "x")), below)
	}
	for _, p := range []string{
		contract.FilesDir + "/other", g.own + "x", strings.Replace(g.own, "/id-", "/-", 1), request.GuestCopy("id", "/proc"),
		request.GuestCopy("id", "/v"),
	} {
		g.want(p, g.send(file(p, "x")), place)
	}
	g.policy.Pod.Copy = true
	g.want("with copy", g.send(file(contract.FilesDir+"/other", "x")), "")
	g.policy.Pod.Copy, g.policy.Pod.Debug = false, true
	g.want("with debug", g.send(file(contract.FilesDir+"/other", "x")), "")
	g.policy.Volumes = nil
	g.want("a pod's volume with debug", g.send(file(volume, "x")), place)
}

// TestRulesOfATree: once a container has a tree, the container's rule is the only one.
func TestRulesOfATree(t *testing.T) {
	g := newGuest(t, exact("a"), &policy.Content{Rule: policy.ContentUnpinned})
	g.policy.Volumes = append(g.policy.Volumes, policy.Volume{Name: "w", Kind: policy.VolumeCopy, Content: exact("a")})
	for i := range maxEntries - 1 {
		g.want("a file", g.send(file(volume+"/"+fmt.Sprint(i), "x")), "")
	}
	g.want("the container's", g.send(file(g.own+"/a", text)), "")
	g.want("the container's again", g.send(file(g.own+"/a", text)), "")
	const most = "path: expected at most 16384 files with pinned content, got more"
	g.want("one too many", g.send(file(volume+"/more", "x")), most)
	g.want("a link too many", g.send(link(volume+"/more", "x")), most)
	g.want("create", g.create(), "")
	g.want("unpinned files do not count", g.send(file(request.GuestCopy("id2", "/etc/app")+"/a", text)), "")
	g.want("and may change", g.send(file(volume+"/more", "x")), "")
	g.want("and go", g.send(gone(volume+"/more")), "")
	g.want("pinned ones not", g.send(file(g.own+"/a", "x")), `file "a": expected the content with SHA-256 `)
	g.want("no more", g.send(file(g.own+"/b", "x")), `file "b": expected none of this name, got one`)
	g.want("nor go", g.send(gone(g.own+"/a")), `remove: expected pinned files to stay, got "a"`)
}

// TestATreeWithoutFilesIsPinnedToo: a container has a volume with no file, and gets none later.
func TestATreeWithoutFilesIsPinnedToo(t *testing.T) {
	g := newGuest(t, exact(), exact())
	g.want("create", g.create(), "")
	g.want("later", g.send(file(g.own+"/a", text)), `file "a": expected none of this name, got one`)
	g.want("in the volume", g.send(file(volume+"/a", text)), `file "a": expected none of this name, got one`)
	g.want("a directory", g.send(&pb.CopyFileRequest{Path: g.own + "/d", FileMode: directory | 0o755}), "")
	g.want("a pipe", g.send(&pb.CopyFileRequest{Path: g.own + "/d", FileMode: 0o010644}),
		"path: expected a file, directory or link, got "+fmt.Sprintf("%.40q", g.own)[:20])
	g = newGuest(t, exact(), exact("a"))
	g.want("a missing file", g.create(), `web/file "a": expected the file of the policy, got none`)
	g.web.Places = nil // an optional mount that the request leaves out
	g.want("a volume that is not mounted", g.create(), "")
}

// TestRemovalsBeforeAContainer: what is removed before its use is forgotten with all below it.
func TestRemovalsBeforeAContainer(t *testing.T) {
	for what, tc := range map[string]struct {
		gone string
		want string
	}{
		"a file":           {"/d/b", `web/file "d/c": expected none`},
		"its directory":    {"/d", ""},
		"another":          {"/x", `web/file "d/`},
		"a similar name":   {"/d/", "path: expected a path below "},
		"half of a name":   {"/d/b", `web/file "d/c": expected none`},
		"the prefix of it": {"/D", `web/file "d/`},
	} {
		g := newGuest(t, exact("a"), exact())
		list := []*pb.CopyFileRequest{file(g.own+"/a", text), file(g.own+"/d/b", "x"), file(g.own+"/d/c", "x")}
		said := g.send(append(list, gone(g.own+tc.gone))...)
		if said == "" {
			said = g.create()
		}
		g.want(what, said, tc.want)
	}
	g := newGuest(t, exact(), exact())
	g.want("all of it", g.send(file(g.own+"/a", "x"), file(g.own+"/b", "x"), gone(g.own)), "")
	if len(g.trees) != 0 || g.entries != 0 {
		t.Errorf("%d trees, %d files are left", len(g.trees), g.entries)
	}
	g.want("one of two", g.send(file(g.own+"/a", "x"), file(g.own+"/b", "x"), gone(g.own+"/a")), "")
	if len(g.trees) != 1 || g.entries != 1 {
		t.Errorf("%d trees, %d files are left of one", len(g.trees), g.entries)
	}
	g.want("and both", g.send(gone(g.own+"/b"), gone(g.own+"/b")), "")
	g.want("create", g.create(), "")
	g.want("states of kubelet may go", g.send(gone(g.own+"/..2026")), "")
	g.want("a file after it", g.send(file(g.own+"/a", "x")), `file "a": expected none of this name, got one`)
}

// TestPartsOfFiles: parts come in their order, of a bounded number of files at a time.
func TestPartsOfFiles(t *testing.T) {
	g := newGuest(t, exact("a"), exact())
	part := func(name string, from, to int) *pb.CopyFileRequest {
		r := file(g.own+"/"+name, text)
		r.Offset, r.Data = int64(from), []byte(text[from:to])
		return r
	}
	const order = "offset: expected the parts of a file in their order, got "
	g.want("a part without the first", g.send(part("a", 3, 5)), order+"3")
	g.want("in order", g.send(part("a", 0, 3), part("a", 3, 5)), "")
	g.want("one twice", g.send(part("a", 3, 5)), order+"3")
	g.want("a gap", g.send(part("a", 6, 8)), order+"6")
	g.want("anew", g.send(part("a", 0, 5), part("a", 5, len(text))), "")
	g.want("after the end", g.send(part("a", 5, len(text))), order+"5")
	for i := range maxOpen {
		g.want("open", g.send(part(fmt.Sprint(i), 0, 3)), "")
	}
	const most = "path: expected at most 64 files at a time, got more"
	g.want("one more", g.send(part("more", 0, 3)), most)
	g.want("a whole one", g.send(file(g.own+"/b", text)), most)
	g.want("one of them anew", g.send(part("7", 0, 5)), "")
	g.want("one of them to its end", g.send(part("7", 5, len(text))), "")
	g.want("another in its place", g.send(part("more", 0, 3)), "")
	g.want("whole ones leave room", g.send(part("more", 3, len(text)), file(g.own+"/c", text), file(g.own+"/d", text)), "")
}

// TestLinksOfKubelet: which links a pinned tree may have.
func TestLinksOfKubelet(t *testing.T) {
	for _, tc := range []struct {
		name, target string
		want         bool
	}{
		{"..data", "..2026", true},
		{"..data", "..", false},
		{"..data", "...", true},
		{"..data", "2026", false},
		{"..data", "../x", false},
		{"..data", "..a/b", false},
		{"other", "..2026", false},
		{"key", "..data/key", true},
		{"dir", "..data/dir", true},
		{"di", "..data/di", false},
		{"other", "..data/other", false},
		{"key", "..data/dir", false},
		{"key", "key", false},
		{"dirs", "..data/dirs", false},
	} {
		g := newGuest(t, exact("key", "dir/file"), exact())
		g.want("files", g.send(file(g.own+"/..2026/key", text), file(g.own+"/..2026/dir/file", text)), "")
		g.want("create", g.create(), "")
		said := g.send(link(g.own+"/"+tc.name, tc.target))
		if (said == "") != tc.want {
			t.Errorf("%s → %s: %s", tc.name, tc.target, said)
		}
	}
	for name, want := range map[string]string{
		"": ".", "a": "a", "a/b": "a/b", "..1/a": "a", "..1": "..1", "..1/a/b": "a/b", "a/..1": "a/..1",
	} {
		if got := state(name); got != want {
			t.Errorf("state(%q) = %q, want %q", name, got, want)
		}
	}
}
