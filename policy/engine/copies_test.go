// Copyright The coco Authors.
// SPDX-License-Identifier: Apache-2.0

package engine

import (
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"testing"

	pb "github.com/coco-shim/coco/api/agent"
	"github.com/coco-shim/coco/api/contract"
	"github.com/coco-shim/coco/internal/ident"
	"github.com/coco-shim/coco/plan/request"
	"github.com/coco-shim/coco/policy"
	"github.com/coco-shim/coco/policy/compare"
)

// Kinds of files in CopyFileRequest.file_mode, as in inode(7).
const (
	directory = 0o040000
	symlink   = 0o120000
	regular   = 0o100000
)

// file is the copy of a whole file.
func file(path, text string) *pb.CopyFileRequest {
	return &pb.CopyFileRequest{Path: path, FileMode: regular | 0o644, FileSize: int64(len(text)), Data: []byte(text)}
}

func link(path, target string) *pb.CopyFileRequest {
	return &pb.CopyFileRequest{Path: path, FileMode: symlink | 0o777, Data: []byte(target)}
}

// TestPinnedContent copies a config map as kubelet lays it out, and changes it.
func TestPinnedContent(t *testing.T) {
	const text = "the owner's text"
	sum := sha256.Sum256([]byte(text))
	p := one(t)
	p.policy.Containers[0].Mounts[2].Source.Copy = &policy.Content{
		Rule: policy.ContentDigest, Files: []policy.File{{Path: "key", SHA256: hex.EncodeToString(sum[:])}},
	}
	m := p.creates[0]
	at := request.GuestCopy(m.GetContainerId(), "/etc/hosts")
	tree := func(text string) []*pb.CopyFileRequest {
		return []*pb.CopyFileRequest{
			{Path: at, FileMode: directory | 0o755},
			file(at+"/..2026/key", text), link(at+"/..data", "..2026"), link(at+"/key", "..data/key"),
		}
	}
	for _, tc := range []struct {
		what string
		list []*pb.CopyFileRequest
		want compare.Code
	}{
		{"nothing", nil, compare.Content},
		{"the owner's", tree(text), ""},
		{"another text", tree("another"), compare.Content},
		{"one more file", append(tree(text), file(at+"/..2026/more", "")), compare.Content},
		{"a link out", append(tree(text), link(at+"/more", "/etc/shadow")), compare.Content},
		{"a key that leads elsewhere", append(tree(text), link(at+"/key", "..data/other")), compare.Content},
		{"a removed file", append(tree(text), &pb.CopyFileRequest{Path: at + "/..2026/key", Remove: true}), compare.Content},
	} {
		e := p.until(t, 0, false)
		for _, r := range tc.list {
			if err := call(e, "CopyFile", r); err != nil {
				t.Fatalf("%s: %v", tc.what, err)
			}
		}
		if err := call(e, "CreateContainer", m); code(err) != tc.want || (err == nil) != (tc.want == "") {
			t.Errorf("%s: %v, want code %q", tc.what, err, tc.want)
		}
		if tc.want != "" {
			continue
		}
		for what, r := range map[string]*pb.CopyFileRequest{
			"other text": file(at+"/..2027/key", "x"), "a new key": file(at+"/..2027/new", text), "a link": link(at+"/key",
				"/x"),
			"a removed key": {Path: at + "/key", Remove: true},
		} {
			if err := call(e, "CopyFile", r); code(err) != compare.Content {
				t.Errorf("later, %s: %v", what, err)
			}
		}
		for _, r := range []*pb.CopyFileRequest{
			file(at+"/..2027/key", text), link(at+"/..data", "..2027"),
			{Path: at + "/..2026", Remove: true},
		} {
			if err := call(e, "CopyFile", r); err != nil {
				t.Errorf("later, the owner's text: %v", err)
			}
		}
	}
}

// TestPinnedContentUnderAnIDThatLooksLikeAPlace: the id of a container may look like the name of a copy's place.
func TestPinnedContentUnderAnIDThatLooksLikeAPlace(t *testing.T) {
	p := one(t)
	p.policy.Pod.Copy = true
	p.policy.Containers[0].Mounts[2].Source.Copy = &policy.Content{Rule: policy.ContentDigest} // no file at all
	if err := p.policy.Validate(); err != nil {
		t.Fatal(err)
	}
	id := "x-" + ident.Hash16("/etc/hosts") + "-y"
	e, m := p.until(t, 0, false), again(t, p.creates[0], id)
	if err := call(e, "CopyFile", file(request.GuestCopy(id, "/etc/hosts")+"/..2026/more", "x")); err != nil {
		t.Fatal(err)
	}
	if err := call(e, "CreateContainer", m); code(err) != compare.Content {
		t.Errorf("with a file that the policy does not have: %v", err)
	}
}

func TestFilesComeInParts(t *testing.T) {
	const text = "0123456789"
	sum := sha256.Sum256([]byte(text))
	p := one(t)
	p.policy.Containers[0].Mounts[2].Source.Copy = &policy.Content{
		Rule: policy.ContentDigest, Files: []policy.File{{Path: ".", SHA256: hex.EncodeToString(sum[:])}},
	}
	e, m := p.until(t, 0, false), p.creates[0]
	at := request.GuestCopy(m.GetContainerId(), "/etc/hosts")
	part := func(from, to int) error {
		r := file(at, text)
		r.Offset, r.Data = int64(from), []byte(text[from:to])
		return call(e, "CopyFile", r)
	}
	if err := errors.Join(part(0, 4), part(0, 5)); err != nil { // begun again
		t.Fatal(err)
	}
	if err := part(6, 10); code(err) != compare.Order {
		t.Errorf("a gap: %v", err)
	}
	if err := part(5, 10); err != nil {
		t.Fatal(err)
	}
	if err := call(e, "CreateContainer", m); err != nil {
		t.Error(err)
	}
}

func TestFilesGoToTheirPlaces(t *testing.T) {
	p := one(t)
	e := p.until(t, 0, false)
	for path, want := range map[string]compare.Code{
		request.GuestCopy("any", "/etc/hosts"):               "",
		request.GuestCopy("any", "/etc/passwd"):              compare.Capability,
		contract.FilesDir + "/sandbox-1-conf/key":            "",
		contract.FilesDir + "/other":                         compare.Capability,
		contract.FilesDir:                                    compare.Value,
		contract.FilesDir + "/sandbox-1/../../../etc/passwd": compare.Value,
		"/etc/passwd": compare.Value,
	} {
		if err := call(e, "CopyFile", file(path, "x")); code(err) != want || (err == nil) != (want == "") {
			t.Errorf("%s: %v, want code %q", path, err, want)
		}
	}
}
