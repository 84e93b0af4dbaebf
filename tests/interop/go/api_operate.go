// This file answers: do authorities, log, health and the server's account of
// itself obey an operator as SPIRE's do?
package main

import (
	"context"
	"crypto/x509"
	"encoding/hex"
	"fmt"
	"strings"
	"time"

	"github.com/go-jose/go-jose/v4"
	"github.com/go-jose/go-jose/v4/jwt"
	agentv1 "github.com/spiffe/spire-api-sdk/proto/spire/api/server/agent/v1"
	bundlev1 "github.com/spiffe/spire-api-sdk/proto/spire/api/server/bundle/v1"
	debugv1 "github.com/spiffe/spire-api-sdk/proto/spire/api/server/debug/v1"
	localauthorityv1 "github.com/spiffe/spire-api-sdk/proto/spire/api/server/localauthority/v1"
	loggerv1 "github.com/spiffe/spire-api-sdk/proto/spire/api/server/logger/v1"
	svidv1 "github.com/spiffe/spire-api-sdk/proto/spire/api/server/svid/v1"
	trustdomainv1 "github.com/spiffe/spire-api-sdk/proto/spire/api/server/trustdomain/v1"
	"github.com/spiffe/spire-api-sdk/proto/spire/api/types"
	"google.golang.org/grpc/codes"
	healthv1 "google.golang.org/grpc/health/grpc_health_v1"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/wrapperspb"
)

func (s *suite) trustDomainChecks(ctx context.Context) {
	s.check(ctx, "federation/with-oneself-is-refused", func(c *check) {
		own := s.server.domain.Name()
		relationship := &types.FederationRelationship{
			TrustDomain: own, BundleEndpointUrl: "https://127.0.0.1:1/bundle",
			BundleEndpointProfile: &types.FederationRelationship_HttpsWeb{HttpsWeb: &types.HTTPSWebProfile{}},
		}
		created, err := s.admin.trustDomains.BatchCreateFederationRelationship(c.ctx, &trustdomainv1.BatchCreateFederationRelationshipRequest{
			FederationRelationships: []*types.FederationRelationship{relationship},
		})
		c.ok(err, "create")
		positions(c, "create", created.GetResults(), codes.InvalidArgument)
		updated, err := s.admin.trustDomains.BatchUpdateFederationRelationship(c.ctx, &trustdomainv1.BatchUpdateFederationRelationshipRequest{
			FederationRelationships: []*types.FederationRelationship{relationship},
		})
		c.ok(err, "update")
		c.that(updated.GetResults()[0].GetStatus().GetCode() != 0, "updated")
		_, err = s.admin.trustDomains.GetFederationRelationship(c.ctx, &trustdomainv1.GetFederationRelationshipRequest{TrustDomain: own})
		c.code(err, codes.NotFound, "get")
		_, err = s.admin.trustDomains.RefreshBundle(c.ctx, &trustdomainv1.RefreshBundleRequest{TrustDomain: own})
		c.code(err, codes.NotFound, "refresh")
	})
	s.check(ctx, "federation/garbage-from-an-endpoint-changes-nothing", func(c *check) {
		foreign, err := newForeignDomain(s.foreignName("garbage"))
		c.ok(err, "make a trust domain")
		relationship := foreign.relationship(foreign.protoBundle())
		relationship.BundleEndpointUrl = strings.TrimSuffix(foreign.url, "/bundle") // where go-spiffe answers otherwise
		relationship.BundleEndpointProfile = &types.FederationRelationship_HttpsWeb{HttpsWeb: &types.HTTPSWebProfile{}}
		created, err := s.admin.trustDomains.BatchCreateFederationRelationship(c.ctx, &trustdomainv1.BatchCreateFederationRelationshipRequest{
			FederationRelationships: []*types.FederationRelationship{relationship},
		})
		c.ok(err, "create")
		positions(c, "create", created.GetResults(), codes.OK)
		before, err := s.admin.bundles.GetFederatedBundle(c.ctx, &bundlev1.GetFederatedBundleRequest{TrustDomain: foreign.domain.Name()})
		c.ok(err, "get")
		_, err = s.admin.trustDomains.RefreshBundle(c.ctx, &trustdomainv1.RefreshBundleRequest{TrustDomain: foreign.domain.Name()})
		c.code(err, codes.Internal, "refresh")
		after, err := s.admin.bundles.GetFederatedBundle(c.ctx, &bundlev1.GetFederatedBundleRequest{TrustDomain: foreign.domain.Name()})
		c.ok(err, "get")
		equal(c, "authorities", len(after.GetX509Authorities()), len(before.GetX509Authorities()))
		s.endFederation(c, foreign.domain.Name())
	})
}

func (s *suite) loggerChecks(ctx context.Context) {
	s.check(ctx, "logger/levels", func(c *check) {
		launched, err := s.admin.logger.GetLogger(c.ctx, &loggerv1.GetLoggerRequest{})
		c.ok(err, "get")
		equal(c, "level before", launched.GetCurrentLevel(), launched.GetLaunchLevel())
		for _, level := range []types.LogLevel{types.LogLevel_ERROR, types.LogLevel_WARN, types.LogLevel_INFO, types.LogLevel_TRACE, types.LogLevel_DEBUG} {
			set, err := s.admin.logger.SetLogLevel(c.ctx, &loggerv1.SetLogLevelRequest{NewLevel: level})
			c.ok(err, "set")
			equal(c, "level answered", set.GetCurrentLevel(), level)
			got, err := s.admin.logger.GetLogger(c.ctx, &loggerv1.GetLoggerRequest{})
			c.ok(err, "get")
			equal(c, "level", got.GetCurrentLevel(), level)
			equal(c, "launch level", got.GetLaunchLevel(), launched.GetLaunchLevel())
		}
		for _, level := range []types.LogLevel{types.LogLevel_UNSPECIFIED, 99} {
			_, err = s.admin.logger.SetLogLevel(c.ctx, &loggerv1.SetLogLevelRequest{NewLevel: level})
			c.code(err, codes.InvalidArgument, fmt.Sprintf("set to %v", level))
		}
		reset, err := s.admin.logger.ResetLogLevel(c.ctx, &loggerv1.ResetLogLevelRequest{})
		c.ok(err, "reset")
		equal(c, "level after a reset", reset.GetCurrentLevel(), launched.GetLaunchLevel())
	})
}

func (s *suite) debugChecks(ctx context.Context) {
	s.check(ctx, "debug/counts-and-the-servers-chain", func(c *check) {
		info, err := s.admin.debug.GetInfo(c.ctx, &debugv1.GetInfoRequest{})
		c.ok(err, "get info")
		agents, err := s.admin.agents.CountAgents(c.ctx, &agentv1.CountAgentsRequest{})
		c.ok(err, "count agents")
		bundles, err := s.admin.bundles.CountBundles(c.ctx, &bundlev1.CountBundlesRequest{})
		c.ok(err, "count bundles")
		equal(c, "agents", info.GetAgentsCount(), agents.GetCount())
		equal(c, "entries", info.GetEntriesCount(), s.countEntries(c))
		// The own bundle is counted as a bundle.
		equal(c, "federated bundles", info.GetFederatedBundlesCount(), bundles.GetCount()-1)
		c.that(info.GetUptime() >= 0 && info.GetUptime() < 3600, "up for %d s", info.GetUptime())
		chain := info.GetSvidChain()
		c.that(len(chain) >= 2, "a chain of %d", len(chain))
		equal(c, "ID", idString(chain[0].GetId()), s.server.id().String())
		for _, cert := range chain {
			c.that(cert.GetExpiresAt() > time.Now().Unix(), "a certificate of the chain expired at %d", cert.GetExpiresAt())
		}
	})
}

func (s *suite) healthChecks(ctx context.Context) {
	s.check(ctx, "health/serving", func(c *check) {
		got, err := s.admin.health.Check(c.ctx, &healthv1.HealthCheckRequest{})
		c.ok(err, "check")
		equal(c, "status", got.GetStatus(), healthv1.HealthCheckResponse_SERVING)
		_, err = s.admin.health.Check(c.ctx, &healthv1.HealthCheckRequest{Service: "no.such.Service"})
		c.code(err, codes.NotFound, "check an unknown service")
		ctx, cancel := context.WithCancel(c.ctx)
		defer cancel()
		watch, err := s.admin.health.Watch(ctx, &healthv1.HealthCheckRequest{})
		c.ok(err, "watch")
		got, err = watch.Recv()
		c.ok(err, "receive")
		equal(c, "status", got.GetStatus(), healthv1.HealthCheckResponse_SERVING)
	})
}

// authorityCalls are those of one kind of authority.
type authorityCalls struct {
	name                      string
	state                     func(context.Context) (active, prepared, old *localauthorityv1.AuthorityState, err error)
	prepare                   func(context.Context) (*localauthorityv1.AuthorityState, error)
	activate, taint, revoke   func(context.Context, string) (*localauthorityv1.AuthorityState, error)
	published, tainted, signs func(*check, string) bool
}

func (s *suite) x509Calls() authorityCalls {
	api := s.admin.authorities
	find := func(c *check, id string) *types.X509Certificate {
		bundle, err := s.admin.bundles.GetBundle(c.ctx, &bundlev1.GetBundleRequest{})
		c.ok(err, "get bundle")
		for _, authority := range bundle.GetX509Authorities() {
			cert, err := x509.ParseCertificate(authority.GetAsn1())
			c.ok(err, "parse authority")
			if hex.EncodeToString(cert.SubjectKeyId) == id {
				return authority
			}
		}
		return nil
	}
	return authorityCalls{
		name: "x509",
		state: func(ctx context.Context) (active, prepared, old *localauthorityv1.AuthorityState, err error) {
			r, err := api.GetX509AuthorityState(ctx, &localauthorityv1.GetX509AuthorityStateRequest{})
			return r.GetActive(), r.GetPrepared(), r.GetOld(), err
		},
		prepare: func(ctx context.Context) (*localauthorityv1.AuthorityState, error) {
			r, err := api.PrepareX509Authority(ctx, &localauthorityv1.PrepareX509AuthorityRequest{})
			return r.GetPreparedAuthority(), err
		},
		activate: func(ctx context.Context, id string) (*localauthorityv1.AuthorityState, error) {
			r, err := api.ActivateX509Authority(ctx, &localauthorityv1.ActivateX509AuthorityRequest{AuthorityId: id})
			return r.GetActivatedAuthority(), err
		},
		taint: func(ctx context.Context, id string) (*localauthorityv1.AuthorityState, error) {
			r, err := api.TaintX509Authority(ctx, &localauthorityv1.TaintX509AuthorityRequest{AuthorityId: id})
			return r.GetTaintedAuthority(), err
		},
		revoke: func(ctx context.Context, id string) (*localauthorityv1.AuthorityState, error) {
			r, err := api.RevokeX509Authority(ctx, &localauthorityv1.RevokeX509AuthorityRequest{AuthorityId: id})
			return r.GetRevokedAuthority(), err
		},
		published: func(c *check, id string) bool { return find(c, id) != nil },
		tainted:   func(c *check, id string) bool { return find(c, id).GetTainted() },
		signs: func(c *check, id string) bool {
			csr, err := newCSR(mustKey(c), s.path("signed").String())
			c.ok(err, "make certificate request")
			response, err := s.admin.svids.MintX509SVID(c.ctx, &svidv1.MintX509SVIDRequest{Csr: csr})
			c.ok(err, "mint")
			chain, err := parseChain(response.GetSvid())
			c.ok(err, "parse chain")
			return hex.EncodeToString(chain[len(chain)-1].AuthorityKeyId) == id
		},
	}
}

func (s *suite) jwtCalls() authorityCalls {
	api := s.admin.authorities
	find := func(c *check, id string) *types.JWTKey {
		bundle, err := s.admin.bundles.GetBundle(c.ctx, &bundlev1.GetBundleRequest{})
		c.ok(err, "get bundle")
		for _, authority := range bundle.GetJwtAuthorities() {
			if authority.GetKeyId() == id {
				return authority
			}
		}
		return nil
	}
	return authorityCalls{
		name: "jwt",
		state: func(ctx context.Context) (active, prepared, old *localauthorityv1.AuthorityState, err error) {
			r, err := api.GetJWTAuthorityState(ctx, &localauthorityv1.GetJWTAuthorityStateRequest{})
			return r.GetActive(), r.GetPrepared(), r.GetOld(), err
		},
		prepare: func(ctx context.Context) (*localauthorityv1.AuthorityState, error) {
			r, err := api.PrepareJWTAuthority(ctx, &localauthorityv1.PrepareJWTAuthorityRequest{})
			return r.GetPreparedAuthority(), err
		},
		activate: func(ctx context.Context, id string) (*localauthorityv1.AuthorityState, error) {
			r, err := api.ActivateJWTAuthority(ctx, &localauthorityv1.ActivateJWTAuthorityRequest{AuthorityId: id})
			return r.GetActivatedAuthority(), err
		},
		taint: func(ctx context.Context, id string) (*localauthorityv1.AuthorityState, error) {
			r, err := api.TaintJWTAuthority(ctx, &localauthorityv1.TaintJWTAuthorityRequest{AuthorityId: id})
			return r.GetTaintedAuthority(), err
		},
		revoke: func(ctx context.Context, id string) (*localauthorityv1.AuthorityState, error) {
			r, err := api.RevokeJWTAuthority(ctx, &localauthorityv1.RevokeJWTAuthorityRequest{AuthorityId: id})
			return r.GetRevokedAuthority(), err
		},
		published: func(c *check, id string) bool { return find(c, id) != nil },
		tainted:   func(c *check, id string) bool { return find(c, id).GetTainted() },
		signs: func(c *check, id string) bool {
			response, err := s.admin.svids.MintJWTSVID(c.ctx, &svidv1.MintJWTSVIDRequest{Id: protoID(s.path("signed")), Audience: []string{"one"}})
			c.ok(err, "mint")
			token, err := jwt.ParseSigned(response.GetSvid().GetToken(), []jose.SignatureAlgorithm{jose.RS256, jose.ES256, jose.ES384})
			c.ok(err, "parse")
			return token.Headers[0].KeyID == id
		},
	}
}

func (s *suite) authorityChecks(ctx context.Context) {
	all := []authorityCalls{s.x509Calls(), s.jwtCalls()}
	for i, calls := range all {
		s.preparationChecks(ctx, calls, all[1-i])
	}
	s.check(ctx, "authorities/all-agents-are-evicted", func(c *check) {
		for _, id := range pages(c, "list", s.agentPager(c, nil), 100) {
			path := strings.TrimPrefix(id, "spiffe://"+s.server.domain.Name())
			_, err := s.admin.agents.DeleteAgent(c.ctx, &agentv1.DeleteAgentRequest{Id: &types.SPIFFEID{TrustDomain: s.server.domain.Name(), Path: path}})
			c.ok(err, "delete agent")
		}
	})
	for _, calls := range all {
		s.successionChecks(ctx, calls)
	}
}

// preparationChecks are what can be done, and what is refused, while agents lack a new authority.
func (s *suite) preparationChecks(ctx context.Context, calls, others authorityCalls) {
	name := func(fact string) string { return "authorities/" + calls.name + "-" + fact }
	s.check(ctx, name("what-is-active"), func(c *check) {
		active, _, _, err := calls.state(c.ctx)
		c.ok(err, "state")
		c.that(active.GetAuthorityId() != "" && active.GetExpiresAt() > time.Now().Unix(), "active is %v", active)
		c.that(calls.published(c, active.GetAuthorityId()), "the bundle lacks the active authority")
		c.that(calls.signs(c, active.GetAuthorityId()), "another one signs")
	})
	s.check(ctx, name("a-second-preparation-takes-the-first-out"), func(c *check) {
		first, err := calls.prepare(c.ctx)
		c.ok(err, "prepare")
		c.that(calls.published(c, first.GetAuthorityId()), "the bundle lacks the prepared authority")
		second, err := calls.prepare(c.ctx)
		c.ok(err, "prepare again")
		c.that(second.GetAuthorityId() != first.GetAuthorityId(), "it is the same authority")
		_, prepared, _, err := calls.state(c.ctx)
		c.ok(err, "state")
		equal(c, "prepared", prepared.GetAuthorityId(), second.GetAuthorityId())
		c.that(calls.published(c, second.GetAuthorityId()) && !calls.published(c, first.GetAuthorityId()), "the bundle does not have just the second")
		_, err = calls.activate(c.ctx, first.GetAuthorityId())
		c.code(err, codes.InvalidArgument, "activate the first")
	})
	s.check(ctx, name("unknown-and-misplaced-ids-are-refused"), func(c *check) {
		active, prepared, _, err := calls.state(c.ctx)
		c.ok(err, "state")
		foreign, _, _, err := others.state(c.ctx)
		c.ok(err, "state of the other kind")
		for _, id := range []string{"", "unknown", strings.Repeat("0", 40), foreign.GetAuthorityId()} {
			for verb, call := range map[string]func(context.Context, string) (*localauthorityv1.AuthorityState, error){
				"activate": calls.activate, "taint": calls.taint, "revoke": calls.revoke,
			} {
				_, err := call(c.ctx, id)
				c.code(err, codes.InvalidArgument, fmt.Sprintf("%s %q", verb, id))
			}
		}
		_, err = calls.activate(c.ctx, active.GetAuthorityId())
		c.code(err, codes.InvalidArgument, "activate the active one")
		for what, id := range map[string]string{"active": active.GetAuthorityId(), "prepared": prepared.GetAuthorityId()} {
			_, err = calls.taint(c.ctx, id)
			c.code(err, codes.InvalidArgument, "taint the "+what+" one")
			_, err = calls.revoke(c.ctx, id)
			c.code(err, codes.InvalidArgument, "revoke the "+what+" one")
			c.that(calls.published(c, id) && !calls.tainted(c, id), "the %s one is gone or tainted", what)
		}
	})
	s.check(ctx, name("is-not-activated-before-it-reached-the-agents"), func(c *check) {
		active, prepared, _, err := calls.state(c.ctx)
		c.ok(err, "state")
		inGoodStanding := len(pages(c, "list", s.agentPager(c, &agentv1.ListAgentsRequest_Filter{ByBanned: wrapperspb.Bool(false)}), 100))
		c.that(inGoodStanding > 1, "there are %d agents", inGoodStanding)
		_, err = calls.activate(c.ctx, prepared.GetAuthorityId())
		c.code(err, codes.FailedPrecondition, "activate")
		said := status.Convert(err).Message()
		c.that(strings.Contains(said, fmt.Sprintf("%d agents", inGoodStanding)), "the message does not count %d agents: %s", inGoodStanding, said)
		still, _, _, err := calls.state(c.ctx)
		c.ok(err, "state")
		equal(c, "active", still.GetAuthorityId(), active.GetAuthorityId())
	})
}

// successionChecks go through the life of an authority, with no agent in the way.
func (s *suite) successionChecks(ctx context.Context, calls authorityCalls) {
	name := func(fact string) string { return "authorities/" + calls.name + "-" + fact }
	var old, next string
	s.check(ctx, name("prepared-becomes-active-and-signs"), func(c *check) {
		active, prepared, _, err := calls.state(c.ctx)
		c.ok(err, "state")
		activated, err := calls.activate(c.ctx, prepared.GetAuthorityId())
		c.ok(err, "activate")
		equal(c, "activated", activated.GetAuthorityId(), prepared.GetAuthorityId())
		c.that(calls.signs(c, prepared.GetAuthorityId()), "it does not sign")
		now, none, before, err := calls.state(c.ctx)
		c.ok(err, "state")
		equal(c, "active", now.GetAuthorityId(), prepared.GetAuthorityId())
		equal(c, "old", before.GetAuthorityId(), active.GetAuthorityId())
		c.that(none == nil, "prepared is %v", none)
		c.that(calls.published(c, active.GetAuthorityId()), "the bundle lacks the old one")
		old, next = active.GetAuthorityId(), prepared.GetAuthorityId()
	})
	s.check(ctx, name("old-is-tainted-then-revoked"), func(c *check) {
		c.that(old != "", "an earlier check that this one builds on failed")
		_, err := calls.activate(c.ctx, old)
		c.code(err, codes.FailedPrecondition, "activate the old one")
		_, err = calls.revoke(c.ctx, old)
		c.code(err, codes.FailedPrecondition, "revoke before it is tainted")
		_, err = calls.taint(c.ctx, next)
		c.code(err, codes.InvalidArgument, "taint the active one")
		tainted, err := calls.taint(c.ctx, old)
		c.ok(err, "taint")
		equal(c, "tainted", tainted.GetAuthorityId(), old)
		c.that(calls.tainted(c, old) && !calls.tainted(c, next), "the bundle does not mark just the old one")
		_, err = calls.taint(c.ctx, old)
		c.code(err, codes.FailedPrecondition, "taint it again")
		revoked, err := calls.revoke(c.ctx, old)
		c.ok(err, "revoke")
		equal(c, "revoked", revoked.GetAuthorityId(), old)
		c.that(!calls.published(c, old) && calls.published(c, next), "the bundle does not lack just the old one")
		_, err = calls.revoke(c.ctx, old)
		c.code(err, codes.InvalidArgument, "revoke it again")
		_, _, before, err := calls.state(c.ctx)
		c.ok(err, "state")
		c.that(before == nil, "old is %v", before)
		c.that(calls.signs(c, next), "the active one does not sign any more")
	})
}
