// Copyright The coco Authors.
// SPDX-License-Identifier: Apache-2.0

package image

import (
	"compress/gzip"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"os"
	"strings"

	"github.com/google/go-containerregistry/pkg/name"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/remote"
	"github.com/google/go-containerregistry/pkg/v1/types"
	"github.com/klauspost/compress/zstd"
	"github.com/spf13/cobra"

	"github.com/coco-shim/coco/cmd/coco/internal/cli"
	"github.com/coco-shim/coco/cmd/coco/internal/progress"
	"github.com/coco-shim/coco/image/crypt"
)

// ociTypes are the OCI media types of Docker's, which have no encrypted form.
var ociTypes = map[types.MediaType]types.MediaType{
	types.DockerLayer: types.OCILayer, types.DockerUncompressedLayer: types.OCIUncompressedLayer,
	types.DockerConfigJSON: types.OCIConfigJSON,
}

// maxWindow bounds the memory for a layer that is compressed with zstd.
const maxWindow = 128 << 20

// transform makes the bytes of a layer anew.
type transform func(context.Context, io.Reader, v1.Descriptor) (io.Reader, func() (v1.Descriptor, error), error)

// change makes the layers of an image anew, and stores the image under another name.
type change struct {
	registry
	platform string
	steps    progress.Shown
	// layer returns a reader of the new bytes, and a function that describes them after the last one. A nil reader leaves
	// the layer as it is.
	layer transform
	// check looks at a new layer before it is stored. diffID is the digest of its uncompressed bytes.
	check func(f *os.File, d v1.Descriptor, diffID v1.Hash) error
}

func encryptCommand() *cobra.Command {
	var c change
	var kid, kek, algorithm string
	cmd := &cobra.Command{
		Use:   "encrypt SOURCE DESTINATION",
		Short: "Encrypt the layers of an image in a registry",
		Long: "Reads an image from a registry, encrypts each layer in ocicrypt's format, and stores it under another\n" +
			"name. The layers' keys are encrypted with the key in --kek, for CoCo's key provider attestation-agent. Store\n" +
			"that key in the key broker under --kid. The configuration of an image is not encrypted.",
		Example: "  head -c 32 /dev/urandom > kek\n" +
			"  coco image encrypt --kid kbs:///default/image-kek/app --kek kek \\\n" +
			"    registry.example/team/app:1.4 registry.example/team/app:1.4-encrypted",
		Args: cobra.ExactArgs(2),
		RunE: func(cmd *cobra.Command, args []string) error {
			key, err := cli.ReadFile(kek, maxKey)
			if err != nil {
				return fmt.Errorf("--kek: %w", err)
			}
			to := crypt.Recipient{Kid: kid, Key: key, Algorithm: algorithm}
			if _, err := crypt.Wrap(nil, to); err != nil {
				return fmt.Errorf("--kek %s: %w", kek, err)
			}
			c.layer = encryptLayer(to)
			return c.run(cmd, "encrypt", args[0], args[1])
		},
	}
	c.flags(cmd)
	f := cmd.Flags()
	f.StringVar(&kid, "kid", "", "resource of the key broker that has the key, such as kbs:///default/image-kek/app")
	f.StringVar(&kek, "kek", "", "file with the key, 32 bytes")
	f.StringVar(&algorithm, "algorithm", crypt.GCM, "how layers' keys are encrypted: "+crypt.GCM+", "+crypt.CTR)
	cli.Require(cmd, "kid", "kek")
	return cmd
}

func decryptCommand() *cobra.Command {
	var c change
	var keks []string
	cmd := &cobra.Command{
		Use:   "decrypt SOURCE DESTINATION",
		Short: "Decrypt the layers of an image in a registry",
		Long: "Reads an image from a registry, decrypts its layers, and stores it under another name. A layer is stored\n" +
			"when its HMAC was right and its content has the digest that the configuration names (DiffID).",
		Example: "  coco image decrypt --kek kbs:///default/image-kek/app=kek \\\n" +
			"    registry.example/team/app:1.4-encrypted registry.example/team/app:1.4",
		Args: cobra.ExactArgs(2),
		RunE: func(cmd *cobra.Command, args []string) error {
			keys, err := readKeys(keks)
			if err != nil {
				return err
			}
			c.layer = decryptLayer(keys.find)
			c.check = checkContent
			return c.run(cmd, "decrypt", args[0], args[1])
		},
	}
	c.flags(cmd)
	cmd.Flags().StringArrayVar(&keks, "kek", nil, "KID=FILE: a key of 32 bytes and its kid; may be repeated")
	cli.Require(cmd, "kek")
	return cmd
}

func (c *change) flags(cmd *cobra.Command) {
	c.registry.flags(cmd)
	cmd.Flags().StringVar(&c.platform, "platform", defaultPlatform, "platform of an index's image")
}

// keyFiles are keys by their kids.
type keyFiles map[string][]byte

func readKeys(args []string) (keyFiles, error) {
	out := keyFiles{}
	for _, arg := range args {
		at := strings.LastIndexByte(arg, '=')
		if at < 1 {
			return nil, fmt.Errorf("--kek %q is not KID=FILE", arg)
		}
		key, err := cli.ReadFile(arg[at+1:], maxKey)
		if err == nil && len(key) != 32 {
			err = fmt.Errorf("%s has %d bytes instead of 32", arg[at+1:], len(key))
		}
		if err != nil {
			return nil, fmt.Errorf("--kek: %w", err)
		}
		out[arg[:at]] = key
	}
	return out, nil
}

func (k keyFiles) find(_ context.Context, kid string) ([]byte, error) {
	key, ok := k[kid]
	if !ok {
		return nil, errors.New("no --kek names this kid")
	}
	return key, nil
}

// encryptLayer encrypts layers.
func encryptLayer(to crypt.Recipient) transform {
	return func(_ context.Context, r io.Reader, old v1.Descriptor) (io.Reader, func() (v1.Descriptor, error), error) {
		if crypt.Encrypted(string(old.MediaType)) {
			return nil, nil, errors.New("the layer is encrypted already")
		}
		e, err := crypt.Encrypt(r, old.Digest.String(), to)
		if err != nil {
			return nil, nil, err
		}
		return e, func() (v1.Descriptor, error) {
			d := v1.Descriptor{MediaType: old.MediaType, Annotations: crypt.Plain(old.Annotations)}
			if oci, ok := ociTypes[d.MediaType]; ok {
				d.MediaType = oci
			}
			d.MediaType += crypt.Suffix
			notes, err := e.Annotations()
			maps.Copy(d.Annotations, notes)
			return d, err
		}, nil
	}
}

// decryptLayer decrypts layers, and leaves those that are not encrypted.
func decryptLayer(keys crypt.Keys) transform {
	return func(ctx context.Context, r io.Reader, old v1.Descriptor) (io.Reader, func() (v1.Descriptor, error), error) {
		if !crypt.Encrypted(string(old.MediaType)) {
			return nil, nil, nil
		}
		plain, err := crypt.Decrypt(ctx, r, old.Annotations, keys)
		return plain, func() (v1.Descriptor, error) {
			kind := strings.TrimSuffix(string(old.MediaType), crypt.Suffix)
			return v1.Descriptor{MediaType: types.MediaType(kind), Annotations: crypt.Plain(old.Annotations)}, nil
		}, err
	}
}

// checkContent compares the uncompressed bytes of a layer with their digest.
func checkContent(f *os.File, d v1.Descriptor, diffID v1.Hash) error {
	var r io.Reader = f
	switch {
	case strings.HasSuffix(string(d.MediaType), "gzip"):
		z, err := gzip.NewReader(f)
		if err != nil {
			return err
		}
		r = z
	case strings.HasSuffix(string(d.MediaType), "zstd"):
		z, err := zstd.NewReader(f, zstd.WithDecoderMaxWindow(maxWindow))
		if err != nil {
			return err
		}
		defer z.Close()
		r = z
	}
	h := sha256.New()
	if _, err := io.Copy(h, r); err != nil {
		return fmt.Errorf("decompress: %w", err)
	}
	if got := hex.EncodeToString(h.Sum(nil)); diffID.Algorithm != "sha256" || got != diffID.Hex {
		return fmt.Errorf("its content has DiffID sha256:%s, the configuration says %s", got, diffID)
	}
	return nil
}

func (c *change) run(cmd *cobra.Command, what, source, destination string) error {
	c.steps = progress.New(cmd.ErrOrStderr())
	digest, err := c.copy(cmd.Context(), source, destination)
	c.steps.Wait()
	if err != nil {
		return fmt.Errorf("%s %s: %w", what, source, err)
	}
	_, err = fmt.Fprintln(cmd.OutOrStdout(), digest)
	return err
}

// copy stores the changed image, and returns its name with its digest.
func (c *change) copy(ctx context.Context, source, destination string) (string, error) {
	from, err := c.find(ctx, source)
	if err != nil {
		return "", err
	}
	var opts []name.Option
	if c.insecure {
		opts = append(opts, name.Insecure)
	}
	to, err := name.ParseReference(destination, opts...)
	if err != nil {
		return "", err
	}
	platform, err := v1.ParsePlatform(c.platform)
	if err != nil {
		return "", fmt.Errorf("--platform: %w", err)
	}
	img, err := remote.Image(from.name, append(options(ctx), remote.WithPlatform(*platform))...)
	if err != nil {
		return "", err
	}
	m, err := img.Manifest()
	if err != nil {
		return "", err
	}
	config, err := img.ConfigFile()
	if err != nil {
		return "", err
	}
	if len(config.RootFS.DiffIDs) != len(m.Layers) {
		return "", fmt.Errorf("it has %d layers and %d DiffIDs", len(m.Layers), len(config.RootFS.DiffIDs))
	}
	m = m.DeepCopy()
	for i, d := range m.Layers {
		if m.Layers[i], err = c.copyLayer(ctx, img, to.Context(), d, config.RootFS.DiffIDs[i]); err != nil {
			return "", fmt.Errorf("layer %d of %d: %w", i+1, len(m.Layers), err)
		}
	}
	return c.put(ctx, img, m, to)
}

// put stores configuration and manifest.
func (c *change) put(ctx context.Context, img v1.Image, m *v1.Manifest, to name.Reference) (string, error) {
	config, err := remoteConfig(img)
	if err == nil {
		err = remote.WriteLayer(to.Context(), config, options(ctx)...)
	}
	if err != nil {
		return "", fmt.Errorf("store the configuration: %w", err)
	}
	m.MediaType = types.OCIManifestSchema1
	if oci, ok := ociTypes[m.Config.MediaType]; ok {
		m.Config.MediaType = oci
	}
	raw, err := json.Marshal(m)
	if err != nil {
		return "", err
	}
	digest, _, err := v1.SHA256(strings.NewReader(string(raw)))
	if err != nil {
		return "", err
	}
	if err := remote.Put(to, manifest(raw), options(ctx)...); err != nil {
		return "", fmt.Errorf("store the manifest: %w", err)
	}
	return to.Context().Digest(digest.String()).String(), nil
}
