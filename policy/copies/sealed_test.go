// Copyright The coco Authors.
// SPDX-License-Identifier: Apache-2.0

package copies

import (
	"strconv"
	"testing"

	pb "github.com/coco-shim/coco/api/agent"

	"github.com/coco-shim/coco/policy"
	"github.com/coco-shim/coco/policy/compare"
)

// TestWhereAContainerSeesAFile: the paths of a copied volume in the mounts of a container.
func TestWhereAContainerSeesAFile(t *testing.T) {
	use := func(dst, volume, sub string) policy.Mount {
		return policy.Mount{Destination: dst, Source: policy.Source{Volume: &policy.Use{Name: volume, SubPath: sub}}}
	}
	p := &policy.Policy{Volumes: []policy.Volume{
		{Name: "v", Content: &policy.Content{}},
		{Name: "w", Content: &policy.Content{}},
		{Name: "d", Kind: policy.VolumeDisk},
	}}
	places := map[string]string{"v": "/files/sandbox-v", "w": "/files/sandbox-w", "d": "/storage/sandbox-v"}
	for name, tc := range map[string]struct {
		mount policy.Mount
		rest  string
		want  string // "": not seen
	}{
		"a volume":                {use("/etc/v/", "v", ""), "..2026/a/b", "/etc/v/a/b"},
		"another volume":          {use("/etc/v", "w", ""), "..2026/a", ""},
		"a disk":                  {use("/etc/v", "d", ""), "a", ""},
		"a volume without a copy": {use("/etc/v", "x", ""), "a", ""},
		"a directory of it":       {use("/etc/v", "v", "a"), "..2026/a/b", "/etc/v/b"},
		"another directory":       {use("/etc/v", "v", "a"), "..2026/ab/b", ""},
		"a file of it":            {use("/etc/v", "v", "a"), "..2026/a", "/etc/v"},
	} {
		c := &policy.Container{Mounts: []policy.Mount{tc.mount}}
		d := stray(p, Holder{ID: "id", Of: c, Places: places}, "sandbox-v/"+tc.rest)
		if (d == nil) != (tc.want == "") || d != nil && d.Field != "file "+compare.Quote(tc.want) {
			t.Errorf("%s: %v, want %q", name, d, tc.want)
		}
		c.Secrets = []policy.Secret{{File: tc.want, Sealed: true}}
		if d := stray(p, Holder{ID: "id", Of: c, Places: places}, "sandbox-v/"+tc.rest); d != nil {
			t.Errorf("%s, opened: %v", name, d)
		}
	}
}

const sealedText = "sealed.eyJhbGciOiJFUzI1NiJ9.eyJ0eXBlIjoidmF1bHQifQ.AAAA"

// sealing has a policy with a sealed secret in the file /v/secret of the volume.
func sealing(t *testing.T, own, shared *policy.Content) *guest {
	t.Helper()
	g := newGuest(t, own, shared)
	g.web.Of.Secrets = []policy.Secret{
		{Resource: "kbs:///a/b/c", File: "/v/secret", Sealed: true}, {Resource: "kbs:///a/b/c", File: "/v/plain"},
	}
	return g
}

const strayFile = ": expected no sealed text: the policy does not say which resource it may open, got one"

// TestSealedTextsBeforeAndAfterAContainer: what is copied before a container is judged with it, the rest at once.
func TestSealedTextsBeforeAndAfterAContainer(t *testing.T) {
	unpinned := &policy.Content{Rule: policy.ContentUnpinned}
	long := file(volume+"/other", sealedText)
	long.FileSize++
	begin, end := file(volume+"/other", sealedText), file(volume+"/other", sealedText)
	begin.Data, end.Data, end.Offset = begin.Data[:9], end.Data[9:], 9
	rest := file(volume+"/secret", sealedText)
	rest.Offset, rest.FileSize = 9, 99
	for _, tc := range []struct {
		what string
		list []*pb.CopyFileRequest
		want string
	}{
		{"its file", []*pb.CopyFileRequest{file(volume+"/secret", sealedText)}, ""},
		{"another file", []*pb.CopyFileRequest{file(volume+"/other", sealedText)}, `web/file "/v/other"` + strayFile},
		{
			"a secret that is not sealed",
			[]*pb.CopyFileRequest{file(volume+"/plain", sealedText)},
			`web/file "/v/plain"` + strayFile,
		},
		{"a line", []*pb.CopyFileRequest{file(volume+"/other", sealedText+"\n")}, `web/file "/v/other"` + strayFile},
		{"a part", []*pb.CopyFileRequest{long}, `web/file "/v/other"` + strayFile},
		{
			"in parts, of which none is a sealed text",
			[]*pb.CopyFileRequest{begin, end},
			`web/file "/v/other"` + strayFile,
		},
		{"a later part", []*pb.CopyFileRequest{rest}, ""},
		{"a link", []*pb.CopyFileRequest{link(volume+"/other", sealedText)}, ""},
		{"plain text", []*pb.CopyFileRequest{file(volume+"/other", "sealed.x")}, ""},
		{
			"plain text in its place",
			[]*pb.CopyFileRequest{file(volume+"/other", sealedText), file(volume+"/other", "x")},
			"",
		},
		{"removed", []*pb.CopyFileRequest{file(volume+"/other", sealedText), gone(volume + "/other")}, ""},
		{
			"removed with its directory",
			[]*pb.CopyFileRequest{file(volume+"/..1/d/other", sealedText), gone(volume + "/..1/d")},
			"",
		},
		{"removed with its tree", []*pb.CopyFileRequest{file(volume+"/other", sealedText), gone(volume)}, ""},
		{
			"another one removed",
			[]*pb.CopyFileRequest{file(volume+"/other", sealedText), gone(volume + "/oth"), gone(volume + "/other/a")},
			`web/file "/v/other"` + strayFile,
		},
	} {
		g := sealing(t, unpinned, unpinned)
		g.want(tc.what, g.send(tc.list...), "")
		g.want(tc.what, g.create(), tc.want)
		g = sealing(t, unpinned, unpinned)
		g.want("create", g.create(), "")
		if len(tc.list) == 1 {
			g.want(tc.what+", later", g.send(tc.list...), tc.want)
		}
	}
	g := sealing(t, unpinned, unpinned)
	for i := range maxSealedTexts {
		g.want("a text", g.send(file(volume+"/"+strconv.Itoa(i), sealedText)), "")
	}
	g.want("one more", g.send(file(volume+"/more", sealedText)), "path: expected at most 4096 sealed texts, got more")
	g.want("a plain one", g.send(file(volume+"/more", "x")), "")
}

// TestSealedTextsInPinnedContent: a file is compared with both rules, and noted for both.
func TestSealedTextsInPinnedContent(t *testing.T) {
	own := &policy.Content{Rule: policy.ContentDigest, Files: []policy.File{
		{Path: "other", SHA256: digest(sealedText)}, {Path: "plain", SHA256: digest(text)},
	}}
	g := sealing(t, own, exact())
	g.want("files", g.send(file(g.own+"/other", sealedText), file(g.own+"/plain", text)), "")
	g.want("a link beside them", g.send(link(g.own+"/other2", "x"), gone(g.own+"/other2")), "")
	g.want("create", g.create(), `web/file "/etc/app/other"`+strayFile)
	g.web.Of.Secrets = append(g.web.Of.Secrets, policy.Secret{File: "/etc/app/other", Sealed: true})
	g.want("create with a secret for it", g.create(), "")
	g.want("another text", g.send(file(g.own+"/other", text)), `file "other": expected the content with SHA-256 `)
	g.web.Of.Secrets = g.web.Of.Secrets[:0]
	g.want("without sealed secrets nothing is noted", g.send(file(g.own+"/other", sealedText)), "")
}
