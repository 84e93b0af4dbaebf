// This file answers: does the server keep foreign bundles and federation
// relationships as SPIRE does, and does it fetch bundles from go-spiffe's own
// bundle endpoint?
package main

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"io"
	"log"
	"math/big"
	"net"
	"net/http"
	"net/url"
	"slices"
	"sync"
	"time"

	"github.com/spiffe/go-spiffe/v2/bundle/spiffebundle"
	"github.com/spiffe/go-spiffe/v2/federation"
	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"github.com/spiffe/go-spiffe/v2/spiffetls/tlsconfig"
	"github.com/spiffe/go-spiffe/v2/svid/x509svid"
	bundlev1 "github.com/spiffe/spire-api-sdk/proto/spire/api/server/bundle/v1"
	entryv1 "github.com/spiffe/spire-api-sdk/proto/spire/api/server/entry/v1"
	trustdomainv1 "github.com/spiffe/spire-api-sdk/proto/spire/api/server/trustdomain/v1"
	"github.com/spiffe/spire-api-sdk/proto/spire/api/types"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
)

// foreignDomain is a trust domain with a bundle endpoint: go-spiffe's handler
// behind an X509-SVID.
type foreignDomain struct {
	domain spiffeid.TrustDomain
	ca     *x509.Certificate
	key    *ecdsa.PrivateKey
	bundle *spiffebundle.Bundle
	url    string

	mutex sync.Mutex
	svid  *x509svid.SVID
}

func newForeignDomain(name string) (*foreignDomain, error) {
	domain, err := spiffeid.TrustDomainFromString(name)
	if err != nil {
		return nil, err
	}
	f := &foreignDomain{domain: domain}
	if f.ca, f.key, err = newAuthority(domain); err != nil {
		return nil, err
	}
	f.bundle = spiffebundle.FromX509Authorities(domain, []*x509.Certificate{f.ca})
	f.bundle.SetSequenceNumber(1)
	f.bundle.SetRefreshHint(time.Minute)
	if err := f.show("/endpoint"); err != nil {
		return nil, err
	}
	handler, err := federation.NewHandler(domain, f.bundle)
	if err != nil {
		return nil, err
	}
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return nil, err
	}
	f.url = "https://" + listener.Addr().String() + "/bundle"
	config := tlsconfig.TLSServerConfig(f)
	server := &http.Server{Handler: handler, ErrorLog: log.New(io.Discard, "", 0)}
	go func() { _ = server.Serve(tls.NewListener(listener, config)) }()
	return f, nil
}

func newAuthority(domain spiffeid.TrustDomain) (*x509.Certificate, *ecdsa.PrivateKey, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, nil, err
	}
	template := &x509.Certificate{
		SerialNumber:          big.NewInt(time.Now().UnixNano()),
		Subject:               pkix.Name{Organization: []string{"Foreign"}},
		NotBefore:             time.Now().Add(-time.Minute),
		NotAfter:              time.Now().Add(time.Hour),
		URIs:                  []*url.URL{domain.ID().URL()},
		KeyUsage:              x509.KeyUsageCertSign,
		BasicConstraintsValid: true,
		IsCA:                  true,
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		return nil, nil, err
	}
	certificate, err := x509.ParseCertificate(der)
	return certificate, key, err
}

// show makes the endpoint prove itself as path from now on.
func (f *foreignDomain) show(path string) error {
	id, err := spiffeid.FromPath(f.domain, path)
	if err != nil {
		return err
	}
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return err
	}
	template := &x509.Certificate{
		SerialNumber:          big.NewInt(time.Now().UnixNano()),
		NotBefore:             time.Now().Add(-time.Minute),
		NotAfter:              time.Now().Add(time.Hour),
		URIs:                  []*url.URL{id.URL()},
		KeyUsage:              x509.KeyUsageDigitalSignature,
		ExtKeyUsage:           []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth},
		BasicConstraintsValid: true,
	}
	der, err := x509.CreateCertificate(rand.Reader, template, f.ca, key.Public(), f.key)
	if err != nil {
		return err
	}
	certificate, err := x509.ParseCertificate(der)
	if err != nil {
		return err
	}
	f.mutex.Lock()
	defer f.mutex.Unlock()
	f.svid = &x509svid.SVID{ID: id, Certificates: []*x509.Certificate{certificate}, PrivateKey: key}
	return nil
}

// GetX509SVID implements x509svid.Source.
func (f *foreignDomain) GetX509SVID() (*x509svid.SVID, error) {
	f.mutex.Lock()
	defer f.mutex.Unlock()
	return f.svid, nil
}

func (f *foreignDomain) protoBundle() *types.Bundle {
	bundle := &types.Bundle{TrustDomain: f.domain.Name()}
	for _, authority := range f.bundle.X509Authorities() {
		bundle.X509Authorities = append(bundle.X509Authorities, &types.X509Certificate{Asn1: authority.Raw})
	}
	return bundle
}

// relationship trusts the endpoint by its SPIFFE ID, and begins with bundle.
func (f *foreignDomain) relationship(bundle *types.Bundle) *types.FederationRelationship {
	return &types.FederationRelationship{
		TrustDomain:       f.domain.Name(),
		BundleEndpointUrl: f.url,
		BundleEndpointProfile: &types.FederationRelationship_HttpsSpiffe{
			HttpsSpiffe: &types.HTTPSSPIFFEProfile{EndpointSpiffeId: f.domain.ID().String() + "/endpoint"},
		},
		TrustDomainBundle: bundle,
	}
}

func (s *suite) foreignName(name string) string {
	return name + "-" + s.mark + ".test"
}

func (s *suite) federatedBundleChecks(ctx context.Context) {
	one, two := s.foreignName("one"), s.foreignName("two")
	bundle := func(name string, sequence uint64) *types.Bundle {
		return &types.Bundle{TrustDomain: name, SequenceNumber: sequence, RefreshHint: 60}
	}
	s.check(ctx, "federated-bundles-by-position", func(c *check) {
		created, err := s.admin.bundles.BatchCreateFederatedBundle(c.ctx, &bundlev1.BatchCreateFederatedBundleRequest{
			Bundle: []*types.Bundle{bundle(one, 1), bundle(s.server.domain.Name(), 1), bundle(one, 2), bundle("no trust domain", 1)},
		})
		c.ok(err, "create")
		expected := []codes.Code{codes.OK, codes.InvalidArgument, codes.AlreadyExists, codes.InvalidArgument}
		equal(c, "results", len(created.GetResults()), len(expected))
		for i, result := range created.GetResults() {
			equal(c, "status of a create", codes.Code(result.GetStatus().GetCode()), expected[i])
		}
		set, err := s.admin.bundles.BatchSetFederatedBundle(c.ctx, &bundlev1.BatchSetFederatedBundleRequest{
			Bundle:     []*types.Bundle{bundle(one, 3), bundle(two, 4)},
			OutputMask: &types.BundleMask{SequenceNumber: true},
		})
		c.ok(err, "set")
		for i, sequence := range []uint64{3, 4} {
			equal(c, "sequence number", set.GetResults()[i].GetBundle().GetSequenceNumber(), sequence)
			equal(c, "masked hint", set.GetResults()[i].GetBundle().GetRefreshHint(), 0)
		}
		updated, err := s.admin.bundles.BatchUpdateFederatedBundle(c.ctx, &bundlev1.BatchUpdateFederatedBundleRequest{
			Bundle:    []*types.Bundle{{TrustDomain: one, RefreshHint: 61}, bundle(s.foreignName("none"), 1)},
			InputMask: &types.BundleMask{RefreshHint: true},
		})
		c.ok(err, "update")
		equal(c, "hint", updated.GetResults()[0].GetBundle().GetRefreshHint(), 61)
		equal(c, "sequence number", updated.GetResults()[0].GetBundle().GetSequenceNumber(), 3)
		equal(c, "status of an update", codes.Code(updated.GetResults()[1].GetStatus().GetCode()), codes.NotFound)
	})
	s.check(ctx, "federated-bundles-by-page", func(c *check) {
		var names []string
		token := ""
		for {
			page, err := s.admin.bundles.ListFederatedBundles(c.ctx, &bundlev1.ListFederatedBundlesRequest{
				PageSize: 1, PageToken: token, OutputMask: &types.BundleMask{},
			})
			c.ok(err, "list")
			for _, bundle := range page.GetBundles() {
				equal(c, "masked hint", bundle.GetRefreshHint(), 0)
				names = append(names, bundle.GetTrustDomain())
			}
			if token = page.GetNextPageToken(); token == "" {
				break
			}
		}
		c.that(slices.Contains(names, one) && slices.Contains(names, two), "listed %q", names)
		c.that(!slices.Contains(names, s.server.domain.Name()), "the own bundle is listed")
	})
	s.check(ctx, "federated-bundles-delete-modes", func(c *check) {
		needs(c, s.node)
		entries := s.create(c,
			&types.Entry{ParentId: protoID(s.node.svid.ID), SpiffeId: protoID(s.path("federated")), Selectors: unixSelector(1), FederatesWith: []string{one, two}})
		remove := func(mode bundlev1.BatchDeleteFederatedBundleRequest_Mode, names ...string) []codes.Code {
			deleted, err := s.admin.bundles.BatchDeleteFederatedBundle(c.ctx, &bundlev1.BatchDeleteFederatedBundleRequest{TrustDomains: names, Mode: mode})
			c.ok(err, "delete")
			var got []codes.Code
			for _, result := range deleted.GetResults() {
				got = append(got, codes.Code(result.GetStatus().GetCode()))
			}
			return got
		}
		restricted := remove(bundlev1.BatchDeleteFederatedBundleRequest_RESTRICT, one, s.server.domain.Name(), s.foreignName("none"))
		c.that(slices.Equal(restricted, []codes.Code{codes.FailedPrecondition, codes.InvalidArgument, codes.NotFound}), "restricted: %v", restricted)
		dissociated := remove(bundlev1.BatchDeleteFederatedBundleRequest_DISSOCIATE, one)
		c.that(slices.Equal(dissociated, []codes.Code{codes.OK}), "dissociated: %v", dissociated)
		left, err := s.admin.entries.GetEntry(c.ctx, &entryv1.GetEntryRequest{Id: entries[0].GetId()})
		c.ok(err, "get")
		c.that(slices.Equal(left.GetFederatesWith(), []string{two}), "federates with %q", left.GetFederatesWith())
		deleted := remove(bundlev1.BatchDeleteFederatedBundleRequest_DELETE, two)
		c.that(slices.Equal(deleted, []codes.Code{codes.OK}), "deleted: %v", deleted)
		_, err = s.admin.entries.GetEntry(c.ctx, &entryv1.GetEntryRequest{Id: entries[0].GetId()})
		equal(c, "status of the entry", status.Code(err), codes.NotFound)
	})
}

func (s *suite) federationChecks(ctx context.Context) {
	var foreign *foreignDomain
	refresh := func(c *check, name string) error {
		_, err := s.admin.trustDomains.RefreshBundle(c.ctx, &trustdomainv1.RefreshBundleRequest{TrustDomain: name})
		return err
	}
	s.check(ctx, "federation-relationships-by-position", func(c *check) {
		made, err := newForeignDomain(s.foreignName("foreign"))
		c.ok(err, "start a bundle endpoint")
		plain := made.relationship(nil)
		plain.BundleEndpointUrl = "http://" + made.domain.Name()
		user := made.relationship(nil)
		user.BundleEndpointUrl = "https://user@" + made.domain.Name()
		unproven := made.relationship(nil)
		unproven.BundleEndpointProfile = nil
		own := made.relationship(nil)
		own.TrustDomain = s.server.domain.Name()
		created, err := s.admin.trustDomains.BatchCreateFederationRelationship(c.ctx, &trustdomainv1.BatchCreateFederationRelationshipRequest{
			FederationRelationships: []*types.FederationRelationship{plain, user, unproven, own, made.relationship(made.protoBundle())},
		})
		c.ok(err, "create")
		expected := []codes.Code{codes.InvalidArgument, codes.InvalidArgument, codes.InvalidArgument, codes.InvalidArgument, codes.OK}
		equal(c, "results", len(created.GetResults()), len(expected))
		for i, result := range created.GetResults() {
			equal(c, "status of a create", codes.Code(result.GetStatus().GetCode()), expected[i])
		}
		equal(c, "URL", created.GetResults()[4].GetFederationRelationship().GetBundleEndpointUrl(), made.url)
		again, err := s.admin.trustDomains.BatchCreateFederationRelationship(c.ctx, &trustdomainv1.BatchCreateFederationRelationshipRequest{
			FederationRelationships: []*types.FederationRelationship{made.relationship(nil)},
		})
		c.ok(err, "create again")
		// SPIRE says Internal here, against its own documentation.
		c.that(again.GetResults()[0].GetStatus().GetCode() != 0, "created twice")
		foreign = made
	})
	s.check(ctx, "federation-relationships-masked", func(c *check) {
		needs(c, foreign)
		got, err := s.admin.trustDomains.GetFederationRelationship(c.ctx, &trustdomainv1.GetFederationRelationshipRequest{
			TrustDomain: foreign.domain.Name(), OutputMask: &types.FederationRelationshipMask{BundleEndpointUrl: true},
		})
		c.ok(err, "get")
		equal(c, "URL", got.GetBundleEndpointUrl(), foreign.url)
		c.that(got.GetBundleEndpointProfile() == nil && got.GetTrustDomainBundle() == nil, "more than the mask names: %v", got)
		_, err = s.admin.trustDomains.GetFederationRelationship(c.ctx, &trustdomainv1.GetFederationRelationshipRequest{TrustDomain: s.foreignName("none")})
		equal(c, "status without a relationship", status.Code(err), codes.NotFound)
		list, err := s.admin.trustDomains.ListFederationRelationships(c.ctx, &trustdomainv1.ListFederationRelationshipsRequest{})
		c.ok(err, "list")
		c.that(slices.ContainsFunc(list.GetFederationRelationships(), func(one *types.FederationRelationship) bool {
			return one.GetTrustDomain() == foreign.domain.Name()
		}), "it is not listed")
	})
	s.check(ctx, "bundle-is-fetched-from-go-spiffe", func(c *check) {
		needs(c, foreign)
		next, _, err := newAuthority(foreign.domain)
		c.ok(err, "make an authority")
		foreign.bundle.AddX509Authority(next)
		foreign.bundle.SetSequenceNumber(2)
		c.ok(refresh(c, foreign.domain.Name()), "refresh")
		got, err := s.admin.bundles.GetFederatedBundle(c.ctx, &bundlev1.GetFederatedBundleRequest{TrustDomain: foreign.domain.Name()})
		c.ok(err, "get")
		equal(c, "authorities", len(got.GetX509Authorities()), 2)
		equal(c, "refresh hint", got.GetRefreshHint(), 60)
		if s.node != nil {
			fetched, err := s.node.bundles.GetFederatedBundle(c.ctx, &bundlev1.GetFederatedBundleRequest{TrustDomain: foreign.domain.Name()})
			c.ok(err, "get as a node")
			equal(c, "authorities for a node", len(fetched.GetX509Authorities()), 2)
		}
	})
	s.check(ctx, "another-endpoint-is-not-believed", func(c *check) {
		needs(c, foreign)
		c.ok(foreign.show("/somebody-else"), "change the endpoint's SVID")
		foreign.bundle.SetX509Authorities([]*x509.Certificate{foreign.ca})
		foreign.bundle.SetSequenceNumber(3)
		c.that(refresh(c, foreign.domain.Name()) != nil, "it was believed")
		got, err := s.admin.bundles.GetFederatedBundle(c.ctx, &bundlev1.GetFederatedBundleRequest{TrustDomain: foreign.domain.Name()})
		c.ok(err, "get")
		equal(c, "authorities", len(got.GetX509Authorities()), 2)
		c.ok(foreign.show("/endpoint"), "change it back")
		c.ok(refresh(c, foreign.domain.Name()), "refresh")
		equal(c, "status without a relationship", status.Code(refresh(c, s.foreignName("none"))), codes.NotFound)
	})
	s.check(ctx, "federation-relationships-end", func(c *check) {
		needs(c, foreign)
		ended, err := s.admin.trustDomains.BatchDeleteFederationRelationship(c.ctx, &trustdomainv1.BatchDeleteFederationRelationshipRequest{
			TrustDomains: []string{foreign.domain.Name(), foreign.domain.Name(), ""},
		})
		c.ok(err, "delete")
		for i, expected := range []codes.Code{codes.OK, codes.NotFound, codes.InvalidArgument} {
			equal(c, "status of a delete", codes.Code(ended.GetResults()[i].GetStatus().GetCode()), expected)
		}
		equal(c, "status of a refresh", status.Code(refresh(c, foreign.domain.Name())), codes.NotFound)
		// SPIRE keeps the bundle.
		_, err = s.admin.bundles.BatchDeleteFederatedBundle(c.ctx, &bundlev1.BatchDeleteFederatedBundleRequest{TrustDomains: []string{foreign.domain.Name()}})
		c.ok(err, "delete the bundle")
	})
	s.check(ctx, "only-operators-federate", func(c *check) {
		needs(c, s.node)
		_, err := s.node.trustDomains.ListFederationRelationships(c.ctx, &trustdomainv1.ListFederationRelationshipsRequest{})
		equal(c, "status for a node", status.Code(err), codes.PermissionDenied)
		_, err = s.node.bundles.BatchSetFederatedBundle(c.ctx, &bundlev1.BatchSetFederatedBundleRequest{})
		equal(c, "status for a node", status.Code(err), codes.PermissionDenied)
	})
}
