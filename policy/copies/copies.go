// Copyright The coco Authors.
// SPDX-License-Identifier: Apache-2.0

// Package copies judges the files that the host copies into the guest. Each directory directly below contract.FilesDir
// is the copy for one mount or volume. Its content is noted while no container has it, and compared with the policy
// when one is created with it; from then on each change is compared. Unpinned content is not noted.
//
// A change is checked, handled by the agent and then committed, one at a time, as package engine says. The package
// knows nothing of the order of containers: the engine tells it which of them live. It is pure.
package copies

import (
	"crypto/sha256"
	"encoding/hex"
	"hash"
	"iter"
	"path"
	"slices"
	"strings"

	pb "github.com/coco-shim/coco/api/agent"
	"github.com/coco-shim/coco/api/contract"
	"github.com/coco-shim/coco/internal/ident"
	"github.com/coco-shim/coco/plan/request"
	"github.com/coco-shim/coco/policy"
	"github.com/coco-shim/coco/policy/compare"
	"github.com/coco-shim/coco/policy/signed"
)

// Copies are the copied files of a guest. Its methods must not be called at the same time.
type Copies struct {
	policy  *policy.Policy
	trees   map[string]*tree // by name below contract.FilesDir
	open    map[string]*part // files that are not complete, by path
	entries int
	sealed  sealedTexts
}

// Holder is a container of the guest that has its copies.
type Holder struct {
	ID     string
	Of     *policy.Container
	Places map[string]string // of the pod's volumes, by their names
}

// Limits of what is noted.
const (
	maxEntries = 16 << 10
	maxOpen    = 64
)

type tree struct {
	pin     // of the mount or volume, once a container has it
	entries map[string]entry
	signed  signatures // with the rule signed, once a container has it
}

// pin is the policy's rule for a tree.
type pin struct {
	rule *policy.Content
	name string // of the volume, or the destination of the mount
}

// entry is a file or link of a copy; directories are not noted.
type entry struct {
	link   string // target
	digest string // of a file
	size   int64
	text   []byte // of a file of signatures
}

type part struct {
	hash.Hash
	next int64
	text []byte // of a file of signatures
}

// New makes the state of a guest into which nothing was copied yet.
func New(p *policy.Policy) *Copies {
	return &Copies{policy: p, trees: map[string]*tree{}, open: map[string]*part{}, sealed: sealedTexts{}}
}

// place divides the path of a copy into the name of its tree and the rest.
func place(p string) (top, rest string, ok bool) {
	rel, ok := strings.CutPrefix(p, contract.FilesDir+"/")
	if !ok || path.Clean(p) != p {
		return "", "", false
	}
	top, rest, _ = strings.Cut(rel, "/")
	return top, rest, true
}

// candidates are the rules that may turn out to be those of a tree.
func candidates(p *policy.Policy, top string) []*policy.Content {
	var out []*policy.Content
	if strings.HasPrefix(top, compare.CopyPrefix) {
		for i := range p.Volumes {
			if p.Volumes[i].Content != nil {
				out = append(out, p.Volumes[i].Content)
			}
		}
	}
	for i := range p.Containers {
		for j := range p.Containers[i].Mounts {
			m := &p.Containers[i].Mounts[j]
			if m.Source.Copy == nil {
				continue
			}
			end := strings.LastIndex(top, "-"+ident.Hash16(path.Clean(m.Destination))+"-") // an id may have the same in it
			if end > 0 && path.Base(request.GuestCopy(top[:end], m.Destination)) == top {
				out = append(out, m.Source.Copy)
			}
		}
	}
	return out
}

// Check decides about a copied file. living are the containers of the policy that exist. commit, which may be nil, is
// called once the file was copied.
func (c *Copies) Check(req *pb.CopyFileRequest, living iter.Seq[Holder]) (commit func(), _ *compare.Denial) {
	name := req.GetPath()
	if len(req.GetRawPath()) > 0 {
		name = string(req.GetRawPath())
	}
	top, rest, ok := place(name)
	if !ok {
		return nil, &compare.Denial{
			Code: compare.Value, Field: "path", Want: "a path below " + contract.FilesDir,
			Got: compare.Quote(name),
		}
	}
	commit, d := c.into(top, rest, name, req)
	if d != nil || !c.policy.HasSealed() {
		return commit, d
	}
	noted, d := c.note(top+"/"+rest, req, living)
	return both(commit, noted), d
}

// both is a call of two functions, of which each may be nil.
func both(first, second func()) func() {
	if first == nil || second == nil {
		if first == nil {
			return second
		}
		return first
	}
	return func() {
		first()
		second()
	}
}

// into decides by the rules for contents.
func (c *Copies) into(top, rest, name string, req *pb.CopyFileRequest) (commit func(), _ *compare.Denial) {
	rules := candidates(c.policy, top)
	if t := c.trees[top]; t != nil && t.rule != nil {
		rules = []*policy.Content{t.rule}
	}
	if len(rules) == 0 {
		if c.policy.Pod.Copy || c.policy.Pod.Debug && !strings.HasPrefix(top, compare.CopyPrefix) {
			return nil, nil
		}
		return nil, &compare.Denial{
			Code: compare.Capability, Field: "path", Want: "a place for a mount or volume of the policy",
			Got: compare.Quote(name),
			Fix: "pod.copy = true",
		}
	}
	if !slices.ContainsFunc(rules, func(r *policy.Content) bool { return r.Rule != policy.ContentUnpinned }) {
		return nil, nil
	}
	return c.change(top, rest, name, req)
}

// change notes a change of a tree whose content is pinned, or may turn out to be.
func (c *Copies) change(top, rest, name string, req *pb.CopyFileRequest) (commit func(), _ *compare.Denial) {
	t := c.trees[top]
	if t == nil {
		t = &tree{entries: map[string]entry{}}
	}
	if req.GetRemove() {
		return c.remove(top, rest, t)
	}
	var now entry
	switch kind := req.GetFileMode() & fileType; kind {
	case directory:
		return nil, nil
	case symlink:
		now.link = string(req.GetData())
	case regular:
		whole, d := c.add(name, req)
		if d != nil || whole == nil {
			return nil, d
		}
		now.digest, now.size, now.text = hex.EncodeToString(whole.Sum(nil)), req.GetFileSize(), whole.text
	default:
		return nil, &compare.Denial{
			Code: compare.Content, Field: "path", Want: "a file, directory or link",
			Got: compare.Quote(name) + " of another kind",
		}
	}
	if t.rule != nil {
		if d := t.verify(rest, now); d != nil {
			return nil, d
		}
	}
	_, known := t.entries[rest]
	if !known && c.entries >= maxEntries {
		return nil, &compare.Denial{
			Code: compare.Content, Field: "path", Want: "at most " + compare.Show(maxEntries) + " files with pinned content",
			Got: "more",
		}
	}
	return func() {
		if !known {
			c.entries++
		}
		t.entries[rest] = now
		t.noteSigned(rest, now)
		c.trees[top] = t
	}, nil
}

// Kinds of files in CopyFileRequest.file_mode, as in inode(7).
const (
	fileType  = 0o170000
	directory = 0o040000
	symlink   = 0o120000
	regular   = 0o100000
)

// add takes a part of a file, and returns the whole with its last part. A file that is begun again starts anew.
func (c *Copies) add(name string, req *pb.CopyFileRequest) (whole *part, _ *compare.Denial) {
	p := c.open[name]
	if req.GetOffset() == 0 {
		p = &part{Hash: sha256.New()}
		if c.open[name] == nil && len(c.open) >= maxOpen {
			return nil, &compare.Denial{
				Code: compare.Content, Field: "path", Want: "at most " + compare.Show(maxOpen) + " files at a time", Got: "more",
			}
		}
		c.open[name] = p
	}
	if p == nil || req.GetOffset() != p.next {
		return nil, &compare.Denial{
			Code: compare.Order, Field: "offset", Want: "the parts of a file in their order", Got: compare.Show(req.GetOffset()),
		}
	}
	_, _ = p.Write(req.GetData()) // a hash takes everything
	p.next += int64(len(req.GetData()))
	if path.Base(name) == signed.FileName && p.next <= signed.MaxSize {
		p.text = append(p.text, req.GetData()...)
	}
	if p.next < req.GetFileSize() {
		return nil, nil
	}
	delete(c.open, name)
	return p, nil
}

// remove takes a path away with all below it. Of a tree that a container has, only states of a volume that kubelet has
// replaced may go.
func (c *Copies) remove(top, rest string, t *tree) (commit func(), _ *compare.Denial) {
	if t.rule != nil && !strings.HasPrefix(rest, "..") {
		return nil, &compare.Denial{
			Code: compare.Content, Field: "remove", Want: "pinned files to stay",
			Got: compare.Quote(rest),
		}
	}
	return func() {
		for name := range t.entries {
			if rest == "" || name == rest || strings.HasPrefix(name, rest+"/") {
				delete(t.entries, name)
				c.entries--
			}
		}
		delete(t.signed.states, rest)
		if len(t.entries) == 0 && t.rule == nil {
			delete(c.trees, top)
		}
	}, nil
}

// pinned are the copies of a container, with their rules: of its mounts and of its volumes.
func pinned(p *policy.Policy, h Holder) map[string]pin {
	out := map[string]pin{}
	for i := range h.Of.Mounts {
		if top, of := copyOf(p, &h.Of.Mounts[i], h); top != "" {
			out[top] = of
		}
	}
	return out
}

// copyOf returns the tree of a mount with its rule; "": the mount is of no copy.
func copyOf(p *policy.Policy, m *policy.Mount, h Holder) (top string, of pin) {
	if m.Source.Copy != nil {
		return path.Base(request.GuestCopy(h.ID, m.Destination)), pin{m.Source.Copy, m.Destination}
	}
	if m.Source.Volume == nil {
		return "", pin{}
	}
	for j := range p.Volumes {
		v := &p.Volumes[j]
		if v.Name == m.Source.Volume.Name && v.Content != nil && h.Places[v.Name] != "" {
			return path.Base(h.Places[v.Name]), pin{v.Content, v.Name}
		}
	}
	return "", pin{}
}

// Admit compares the copies that a container gets with their rules.
func (c *Copies) Admit(h Holder) *compare.Denial {
	for top, pin := range pinned(c.policy, h) {
		if pin.rule.Rule == policy.ContentUnpinned {
			continue
		}
		t := &tree{pin: pin}
		if known := c.trees[top]; known != nil {
			t.entries, t.signed = known.entries, known.signed
		}
		if d := t.check(); d != nil {
			d.Container = h.Of.Name
			return d
		}
	}
	return c.sealed.admit(c.policy, h)
}

// Own binds the copies of a container that was made to their rules.
func (c *Copies) Own(h Holder) {
	for top, pin := range pinned(c.policy, h) {
		t := c.trees[top]
		if t == nil {
			t = &tree{entries: map[string]entry{}}
			c.trees[top] = t
		}
		first := t.rule == nil
		t.pin = pin
		switch {
		case pin.rule.Rule == policy.ContentUnpinned:
			c.entries -= len(t.entries)
			t.entries = nil
		case pin.rule.Rule == policy.ContentSigned && first:
			t.signed, _ = t.readSigned() // Admit has compared it
		}
	}
}

// check compares all of a tree: every file and link is one of the rule's, and none is missing.
func (t *tree) check() *compare.Denial {
	if t.rule.Rule == policy.ContentSigned {
		return t.checkSigned()
	}
	there := map[string]bool{}
	for name, e := range t.entries {
		if d := t.verify(name, e); d != nil {
			return d
		}
		if e.digest != "" {
			there[state(name)] = true
		}
	}
	for _, f := range t.rule.Files {
		if !there[f.Path] {
			return &compare.Denial{
				Code: compare.Content, Field: "file " + compare.Quote(f.Path),
				Want: "the file of the policy", Got: "none",
			}
		}
	}
	return nil
}

// verify compares one file or link with the tree's rule. Kubelet's volumes have their files in a directory "..TIME",
// to which a link "..data" leads, and links to "..data/NAME" beside it.
func (t *tree) verify(name string, e entry) *compare.Denial {
	if t.rule.Rule == policy.ContentSigned {
		return t.signed.verify(t, name, e)
	}
	clean := state(name)
	if e.digest != "" {
		i := slices.IndexFunc(t.rule.Files, func(f policy.File) bool { return f.Path == clean })
		switch {
		case i < 0:
			return &compare.Denial{
				Code: compare.Content, Field: "file " + compare.Quote(clean), Want: "none of this name",
				Got: "one",
			}
		case t.rule.Files[i].SHA256 != e.digest:
			return &compare.Denial{
				Code: compare.Content, Field: "file " + compare.Quote(clean),
				Want: "the content with SHA-256 " + t.rule.Files[i].SHA256,
				Got:  "other content of " + compare.Show(e.size) + " bytes",
			}
		}
		return nil
	}
	isState := name == contract.KubeletData && strings.HasPrefix(e.link, "..") && len(e.link) > 2 &&
		!strings.Contains(e.link, "/")
	isUser := e.link == contract.KubeletData+"/"+name && slices.ContainsFunc(t.rule.Files, func(f policy.File) bool {
		return f.Path == name || strings.HasPrefix(f.Path, name+"/")
	})
	if isState || isUser {
		return nil
	}
	return &compare.Denial{
		Code: compare.Content, Field: "link " + compare.Quote(name), Want: "no link but kubelet's",
		Got: "one to " + compare.Quote(e.link),
	}
}

// state returns a file's name without the directory of its state.
func state(name string) string {
	if name == "" {
		return "."
	}
	if first, rest, ok := strings.Cut(name, "/"); ok && strings.HasPrefix(first, "..") {
		return rest
	}
	return name
}
