// Copyright The coco Authors.
// SPDX-License-Identifier: Apache-2.0

package copies

import (
	"bytes"
	"iter"
	"path"
	"slices"
	"strings"

	pb "github.com/coco-shim/coco/api/agent"
	"github.com/coco-shim/coco/policy"
	"github.com/coco-shim/coco/policy/compare"
)

// sealedTexts are the copied files that hold sealed texts, by tree and path in it, "TREE/PATH". In a pod with sealed
// secrets a container gets no such file that its secrets do not name: its program would take the text for the secret.
type sealedTexts map[string]bool

// maxSealedTexts bounds the files that are noted.
const maxSealedTexts = 4096

// note takes down which files of a change hold sealed texts, once it was made, and refuses a sealed text where a living
// container would see it. name has the tree and the path in it.
func (c *Copies) note(name string, req *pb.CopyFileRequest, living iter.Seq[Holder]) (commit func(),
	_ *compare.Denial,
) {
	marks := c.sealed
	switch {
	case req.GetRemove():
		return func() { marks.remove(strings.TrimSuffix(name, "/")) }, nil
	case req.GetFileMode()&fileType != regular || req.GetOffset() != 0:
		return nil, nil
	case !isSealedFile(req):
		return func() { delete(marks, name) }, nil
	case len(marks) >= maxSealedTexts:
		return nil, &compare.Denial{Code: compare.Content, Field: "path", Want: "at most 4096 sealed texts", Got: "more"}
	}
	for h := range living {
		if d := stray(c.policy, h, name); d != nil {
			return nil, d
		}
	}
	return func() { marks[name] = true }, nil
}

// isSealedFile says whether a file begins as a sealed text, and is one if it came whole.
func isSealedFile(req *pb.CopyFileRequest) bool {
	data := bytes.TrimSuffix(req.GetData(), []byte("\n"))
	if int64(len(req.GetData())) < req.GetFileSize() {
		return bytes.HasPrefix(data, []byte("sealed."))
	}
	return policy.HasSyntax(policy.TypeSealed, string(data))
}

// remove forgets a file, or a directory with what is below it.
func (s sealedTexts) remove(name string) {
	for n := range s {
		if n == name || strings.HasPrefix(n, name+"/") {
			delete(s, n)
		}
	}
}

// admit refuses a container that would see a sealed text which its secrets do not name.
func (s sealedTexts) admit(p *policy.Policy, h Holder) *compare.Denial {
	for name := range s {
		if d := stray(p, h, name); d != nil {
			return d
		}
	}
	return nil
}

// stray refuses a file with a sealed text in the mounts of a container, unless a sealed entry of its secrets has it.
func stray(p *policy.Policy, h Holder, sealed string) *compare.Denial {
	top, rest, _ := strings.Cut(sealed, "/")
	for i := range h.Of.Mounts {
		m := &h.Of.Mounts[i]
		rel := state(rest)
		if tree, _ := copyOf(p, m, h); tree != top {
			continue
		}
		if u := m.Source.Volume; u != nil && u.SubPath != "" {
			below, ok := strings.CutPrefix(rel+"/", u.SubPath+"/")
			if !ok {
				continue // the mount does not show it
			}
			rel = below
		}
		file := path.Join(m.Destination, rel)
		if !slices.ContainsFunc(h.Of.Secrets, func(s policy.Secret) bool { return s.Sealed && s.File == file }) {
			return &compare.Denial{
				Code: compare.Content, Container: h.Of.Name, Field: "file " + compare.Quote(file),
				Want: "no sealed text: the policy does not say which resource it may open", Got: "one",
				Fix: "containers[" + h.Of.Name + "].secrets with a sealed entry for it",
			}
		}
	}
	return nil
}
